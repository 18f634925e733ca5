#!/bin/sh
# What the official image does: arguments are the server's.
set -eu

case "${1:-}" in
    '' | -*) set -- memcached "$@" ;;
esac
[ "$1" = memcached ] || exec "$@"
exec setpriv --reuid=memcache --regid=memcache --init-groups -- "$@"
