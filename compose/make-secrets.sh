#!/bin/sh
# Makes every secret that is missing, random, one file each in ./secrets; what is there stays.
set -eu
cd "$(dirname "$0")"
# the folder is closed to others; the files in it are not, because Docker Compose mounts them as they are and the programs in
# the containers are not this user
mkdir -p secrets && chmod 700 secrets
for name in postgres_password postgres_bridge_password postgres_monitor_password nats_bridge_password nats_mirror_password \
    nats_consumer_password nats_browser_password nats_admin_password nats_cluster_password bridge_http_token grafana_admin_password; do
  if [ ! -s "secrets/$name" ]; then
    # hexadecimal: nothing to escape, whatever reads it
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name.new"
    chmod 644 "secrets/$name.new"
    mv "secrets/$name.new" "secrets/$name"
  fi
done
