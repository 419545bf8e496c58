#!/usr/bin/env bash
# Publishes every path that Nix builds. Install it beside publish.sh and enable it in nix.conf:
#
#   post-build-hook = /etc/nix/post-build-hook.sh
#
# Nix runs this script after each build, as the user who builds (root with a daemon), and waits for it. If it fails, the
# path that was built stays in the store, but Nix builds nothing further and the command fails.

set -euf -o pipefail

# A daemon's environment does not have these variables: set the defaults here.
export NIX_S3_CACHE="${NIX_S3_CACHE:-s3://my-cache?region=eu-west-2}"
export CACHE_KEY_FILE="${CACHE_KEY_FILE:-/etc/nix/cache.sec}"

# Paths separated by spaces. Some versions of Nix leave the variable empty (NixOS/nix#6446, #14287); then the derivation
# has the paths.
outputs=${OUT_PATHS:-}
if [[ -z $outputs ]]; then
  outputs=$(nix-store -q --outputs "$DRV_PATH")
fi

# shellcheck disable=SC2086 # one argument per path
exec "$(dirname "$(readlink -f "$0")")/publish.sh" $outputs
