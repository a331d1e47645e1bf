#!/bin/sh
# walbridge verify, with the arguments given here: at once, and each night at VERIFY_HOUR o'clock UTC.
set -u
day=86400
while :; do
  walbridge verify "$@" || echo "verify: exit code $?" >&2
  now=$(date -u +%s)
  # from one second to a whole day
  wait=$(((${VERIFY_HOUR:-3} * 3600 - now % day + 2 * day - 1) % day + 1))
  echo "verify: again in $wait s"
  sleep "$wait"
done
