#!/bin/sh
# Adds to every image of this folder the digest that its tag has now at the registry: name:tag becomes name:tag@sha256:...
# An image that has one already gets the present one of its tag. Needs docker with buildx.
set -eu
cd "$(dirname "$0")"
files="Dockerfile $(ls compose*.yaml)"
# walbridge: is built here
images=$(sed -nE 's/^(FROM|[[:space:]]*image:)[[:space:]]+([^[:space:]@]+).*/\2/p' $files | grep -v '^walbridge:' | sort -u)
for image in $images; do
  digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
  case $digest in
    sha256:*) ;;
    *) echo "$image: the registry told no digest: $digest" >&2; exit 1 ;;
  esac
  for file in $files; do
    # dots of a tag are any character here, which finds no other image
    sed -E "s~^(FROM|[[:space:]]*image:)([[:space:]]+)$image(@sha256:[0-9a-f]+)?([[:space:]]|\$)~\1\2$image@$digest\4~" "$file" > "$file.new"
    cat "$file.new" > "$file"  # keeps the file's mode
    rm "$file.new"
  done
  echo "$image@$digest"
done
