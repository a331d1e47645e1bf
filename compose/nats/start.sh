#!/bin/sh
# Starts nats-server with the passwords from the secrets' files. In quotes: nats-server reads a variable as it reads its
# configuration, where 1e5 would be a number.
set -eu
secrets=${SECRETS_DIR:-/run/secrets}
for name in bridge mirror consumer browser admin cluster; do
  file="$secrets/nats_${name}_password"
  if [ -r "$file" ]; then
    upper=$(echo "$name" | tr '[:lower:]' '[:upper:]')
    export "NATS_${upper}_PASSWORD=\"$(cat "$file")\""
  fi
done
if [ -n "${NATS_CLUSTER_NODES:-}" ]; then
  routes=
  for node in $NATS_CLUSTER_NODES; do
    routes="${routes:+$routes, }\"nats://cluster:$(cat "$secrets/nats_cluster_password")@$node\""
  done
  export "NATS_ROUTES=[$routes]"
fi
exec nats-server "$@"
