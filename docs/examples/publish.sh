#!/usr/bin/env bash
# Signs and pushes what a binary cache lacks of the closures of store paths:
#
#   publish.sh STORE-PATH…    such as `publish.sh ./result`
#
# $NIX_S3_CACHE is the URL of the bucket. $CACHE_KEY_FILE is the file of the secret key, or $CACHE_SECRET_KEY its contents.
# Exit status: 0 published, or nothing was missing; 1 data was refused; 2 usage error, or an operation failed. After a
# failure, nothing incomplete is in the cache, and the same command completes the work.

set -euf -o pipefail

if [[ -z ${NIX_S3_CACHE:-} || $# -eq 0 ]]; then
  echo "publish.sh: expected store paths, and the URL of the bucket in NIX_S3_CACHE" >&2
  exit 2
fi
export NIX_S3_CACHE

if [[ -n ${CACHE_KEY_FILE:-} ]]; then
  key=("$CACHE_KEY_FILE") sign=(-k "$CACHE_KEY_FILE")
elif [[ -z ${CACHE_SECRET_KEY:-} ]]; then
  echo "publish.sh: set CACHE_KEY_FILE to the file of the secret key, or CACHE_SECRET_KEY to its contents" >&2
  exit 2
else
  key=(--key-env CACHE_SECRET_KEY) sign=(--key-env CACHE_SECRET_KEY)
fi
# Fails before anything is packed if the key is missing or not valid.
public_key=$(cache-sign public-key "${key[@]}")

# The closure, not only the paths, because a narinfo is published after those of its references.
closure=$(nix-store -qR "$@") || exit 2
missing=$(s3-push --missing --signed-by "$public_key" <<<"$closure")
[[ -n $missing ]] || exit 0

nar-pack --export --stdin <<<"$missing" | narinfo-gen --archive | cache-sign "${sign[@]}" | s3-push && exit
# A stage that fails truncates the input of the next one, which refuses it: the first status says what happened.
for status in "${PIPESTATUS[@]}"; do
  [[ $status == 0 || $status == 141 ]] || exit "$status"
done
exit 2
