#!/usr/bin/env bash
# Publishes every path that Nix builds. In nix.conf:
#
#   post-build-hook = /etc/nix/post-build-hook.sh
#
# Nix runs this after each build as the user that builds (root, with a daemon), and waits for it. When it fails, the
# path that was built stays, but Nix builds nothing further and the command fails.

set -euf -o pipefail

# A daemon has no environment of its own to speak of: say here where things are.
: "${NIX_S3_CACHE:=s3://my-cache?region=eu-west-2}"
: "${CACHE_KEY_FILE:=/etc/nix/cache.sec}"
export NIX_S3_CACHE

# Paths separated by spaces. Some versions of Nix leave the variable empty (NixOS/nix#6446, #14287): the derivation
# tells as well.
outputs=${OUT_PATHS:-}
if [[ -z $outputs ]]; then
  outputs=$(nix-store -q --outputs "$DRV_PATH")
fi

# The closure, not the outputs only: a narinfo is published after those that it references. What the cache has already
# costs one listing.
# shellcheck disable=SC2086 # one argument for each path
nix-store -qR $outputs \
  | s3-push --missing \
  | nar-pack --export --stdin \
  | narinfo-gen --archive \
  | cache-sign -k "$CACHE_KEY_FILE" \
  | s3-push
