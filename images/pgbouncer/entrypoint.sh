#!/bin/sh
# PgBouncer by environment:
#
#   DB_HOST, DB_PORT            the server
#   DB_USER, DB_PASSWORD        who may come in, and who it is on the server; also the administrator
#   POOL_MODE                   session (default), transaction or statement
#   DEFAULT_POOL_SIZE, MAX_CLIENT_CONN
#
# or by /etc/pgbouncer/pgbouncer.ini, put there before the start, which then decides everything.
set -eu

# `docker run IMAGE -v`
case "${1:-}" in
    '' | -*) set -- pgbouncer "$@" ;;
esac
[ "$1" = pgbouncer ] || exec "$@"
shift

settings=/etc/pgbouncer/pgbouncer.ini
if [ ! -e "$settings" ]; then
    : "${DB_HOST:?set DB_HOST, or copy a pgbouncer.ini to /etc/pgbouncer}"
    : "${DB_USER:?set DB_USER}" "${DB_PASSWORD:?set DB_PASSWORD}"
    printf '"%s" "%s"\n' "$DB_USER" "$DB_PASSWORD" >/etc/pgbouncer/userlist.txt
    # without a log file everything goes to standard error
    cat >"$settings" <<END
[databases]
* = host=$DB_HOST port=${DB_PORT:-5432}

[pgbouncer]
listen_addr = 0.0.0.0
listen_port = 6432
unix_socket_dir =
auth_type = scram-sha-256
auth_file = /etc/pgbouncer/userlist.txt
admin_users = $DB_USER
pool_mode = ${POOL_MODE:-session}
default_pool_size = ${DEFAULT_POOL_SIZE:-20}
max_client_conn = ${MAX_CLIENT_CONN:-100}
ignore_startup_parameters = extra_float_digits
log_connections = 1
log_disconnections = 1
END
    chmod 644 "$settings" /etc/pgbouncer/userlist.txt
fi

# the package's user; pgbouncer refuses to run as root
exec setpriv --reuid=postgres --regid=postgres --init-groups -- pgbouncer "$@" "$settings"
