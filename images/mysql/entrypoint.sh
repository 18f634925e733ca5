#!/bin/sh
# What the official image does with the same variables: MYSQL_ROOT_PASSWORD, MYSQL_ALLOW_EMPTY_PASSWORD,
# MYSQL_DATABASE, MYSQL_USER, MYSQL_PASSWORD.
set -eu

# `docker run IMAGE --max-connections=200`
case "${1:-}" in
    '' | -*) set -- mysqld "$@" ;;
esac
# `docker run IMAGE sh -c ...` is not ours
[ "$1" = mysqld ] || exec "$@"

data=/var/lib/mysql
if [ "$(id -u)" = 0 ]; then
    chown mysql:mysql "$data"
    exec setpriv --reuid=mysql --regid=mysql --init-groups -- "$0" "$@"
fi
shift

quoted() {
    printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g"
}

# what the first start does before it lets anybody in
first() {
    password=$(quoted "${MYSQL_ROOT_PASSWORD:-}")
    echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';"
    echo "CREATE USER 'root'@'%' IDENTIFIED BY '$password';"
    echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
    if [ -n "${MYSQL_DATABASE:-}" ]; then
        echo "CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;"
    fi
    if [ -n "${MYSQL_USER:-}" ]; then
        echo "CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY '$(quoted "${MYSQL_PASSWORD:-}")';"
        echo "GRANT ALL ON \`${MYSQL_DATABASE:-%}\`.* TO '$MYSQL_USER'@'%';"
    fi
}

if [ ! -d "$data/mysql" ]; then
    if [ -z "${MYSQL_ROOT_PASSWORD:-}${MYSQL_ALLOW_EMPTY_PASSWORD:-}" ]; then
        echo 'error: set MYSQL_ROOT_PASSWORD, or MYSQL_ALLOW_EMPTY_PASSWORD=1' >&2
        exit 1
    fi
    mysqld --no-defaults --initialize-insecure --datadir="$data"
    file=$(mktemp)
    first >"$file"
    set -- --init-file="$file" "$@"
fi

exec mysqld --datadir="$data" --bind-address='*' "$@"
