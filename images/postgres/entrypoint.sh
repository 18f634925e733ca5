#!/bin/sh
# What the official image does with the same variables: POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB,
# POSTGRES_INITDB_ARGS, POSTGRES_HOST_AUTH_METHOD, and files in /docker-entrypoint-initdb.d.
set -eu

# `docker run IMAGE -c max_connections=200`
case "${1:-}" in
    '' | -*) set -- postgres "$@" ;;
esac
# `docker run IMAGE sh -c ...` is not ours
[ "$1" = postgres ] || exec "$@"

if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 700 "$PGDATA"
    export HOME=/var/lib/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
fi
shift

make_cluster() {
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$method" != trust ]; then
        echo 'error: set POSTGRES_PASSWORD, or POSTGRES_HOST_AUTH_METHOD=trust' >&2
        exit 1
    fi

    # a container of a test does not outlive the machine's power: nothing to sync for
    set -- --pgdata="$PGDATA" --username="$user" --encoding=UTF8 --locale=C.UTF-8 --no-sync
    if [ -n "${POSTGRES_PASSWORD:-}" ]; then
        password=$(mktemp)
        printf '%s\n' "$POSTGRES_PASSWORD" >"$password"
        set -- "$@" --pwfile="$password"
    fi
    # several arguments in one variable, as in the official image
    # shellcheck disable=SC2086
    initdb "$@" ${POSTGRES_INITDB_ARGS:-}
    rm -f "${password:-}"
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"

    if [ "$database" = postgres ] && [ -z "$(ls /docker-entrypoint-initdb.d)" ]; then
        return
    fi
    # a server that nobody outside can reach, so that the first one they reach is the finished one
    pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait start
    if [ "$database" != postgres ]; then
        echo 'CREATE DATABASE :"database"' |
            psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=database="$database" --username="$user" --dbname=postgres
    fi
    for file in /docker-entrypoint-initdb.d/*; do
        case "$file" in
            *.sh) sh "$file" ;;
            *.sql)
                psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$user" --dbname="$database" --file="$file"
                ;;
        esac
    done
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
}

[ -s "$PGDATA/PG_VERSION" ] || make_cluster

# what the caller gives comes later and wins
exec postgres -c listen_addresses='*' "$@"
