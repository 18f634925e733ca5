#!/bin/sh
# What the official image does: arguments are the server's, a settings file first if there is one.
set -eu

case "${1:-}" in
    '' | -* | *.conf) set -- "$SERVER-server" "$@" ;;
esac
[ "$1" = "$SERVER-server" ] || exec "$@"
shift

settings=
case "${1:-}" in
    *.conf)
        settings=$1
        shift
        ;;
esac
# the official image's server is built to be reached from outside without a password
set -- "$SERVER-server" ${settings:+"$settings"} --protected-mode no "$@"
exec setpriv --reuid="$SERVER" --regid="$SERVER" --init-groups -- "$@"
