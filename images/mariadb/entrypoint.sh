#!/bin/sh
# What the official image does with the same variables: MARIADB_ROOT_PASSWORD, MARIADB_ALLOW_EMPTY_ROOT_PASSWORD,
# MARIADB_DATABASE, MARIADB_USER, MARIADB_PASSWORD.
set -eu

# `docker run IMAGE --max-connections=200`
case "${1:-}" in
    '' | -*) set -- mariadbd "$@" ;;
esac
# `docker run IMAGE sh -c ...` is not ours
[ "$1" = mariadbd ] || exec "$@"

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
    password=$(quoted "${MARIADB_ROOT_PASSWORD:-}")
    echo "ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';"
    echo "CREATE USER 'root'@'%' IDENTIFIED BY '$password';"
    echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
    if [ -n "${MARIADB_DATABASE:-}" ]; then
        echo "CREATE DATABASE IF NOT EXISTS \`$MARIADB_DATABASE\`;"
    fi
    if [ -n "${MARIADB_USER:-}" ]; then
        echo "CREATE USER '$MARIADB_USER'@'%' IDENTIFIED BY '$(quoted "${MARIADB_PASSWORD:-}")';"
        echo "GRANT ALL ON \`${MARIADB_DATABASE:-%}\`.* TO '$MARIADB_USER'@'%';"
    fi
}

if [ ! -d "$data/mysql" ]; then
    if [ -z "${MARIADB_ROOT_PASSWORD:-}${MARIADB_ALLOW_EMPTY_ROOT_PASSWORD:-}" ]; then
        echo 'error: set MARIADB_ROOT_PASSWORD, or MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1' >&2
        exit 1
    fi
    mariadb-install-db --no-defaults --datadir="$data" --auth-root-authentication-method=normal --skip-test-db >/dev/null
    file=$(mktemp)
    first >"$file"
    set -- --init-file="$file" "$@"
fi

exec mariadbd --datadir="$data" --bind-address='*' "$@"
