#!/usr/bin/env bash
# Compiles the C shim against the headers of any SPDK tree, built or not: a quick answer to whether
# presnap's boundary still fits a release. What a build would generate (version.h, config.h) is made up
# in a temporary folder where it is missing; the tree itself is only read.
#
#   scripts/check_spdk_headers.sh SPDK_DIR
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -eq 1 ]] || die "one argument expected: the SPDK tree" "scripts/check_spdk_headers.sh SPDK_DIR" 2
tree=$1
shim=$(dirname "${BASH_SOURCE[0]}")/../spdk-sys/shim
[[ -e $tree/include/spdk/bdev_module.h ]] || die "$tree has no include/spdk/bdev_module.h" "name an SPDK tree" 2

work=$(mktemp -d)
on_exit "rm -rf '$work'"
mkdir -p "$work/include/spdk"

if [[ ! -e $tree/include/spdk/config.h ]]; then
	# The shim reads none of configure's answers; other headers want a few of them.
	printf '#define SPDK_CONFIG_MAX_LCORES 128\n' >"$work/include/spdk/config.h"
fi
if [[ ! -e $tree/include/spdk/version.h ]]; then
	# Since 25.01 made from VERSION ("24.01", "24.01.1-pre") and a template.
	IFS=. read -r major minor patch < <(sed 's/-.*//' "$tree/VERSION")
	sed -e "s/\\\$SPDK_VERSION_MAJOR/$((10#$major))/; s/\\\$SPDK_VERSION_MINOR/$((10#$minor))/" \
		-e "s/\\\$SPDK_VERSION_PATCH/$((10#${patch:-0}))/; s/\\\$SPDK_VERSION_SUFFIX//" \
		"$tree/include/spdk/version.h.in" >"$work/include/spdk/version.h"
fi

status=0
for file in "$shim"/*.c; do
	# The flags of spdk-sys/build.rs.
	"${CC:-cc}" -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wconversion -Werror \
		-isystem "$work/include" -isystem "$tree/include" -c "$file" -o "$work/out.o" || status=1
done
version=$(printf '#include <spdk/version.h>\nSPDK_VERSION_STRING\n' |
	"${CC:-cc}" -E -P -isystem "$work/include" -isystem "$tree/include" - | tail -1 | tr -d '" ')
if ((status == 0)); then
	log "the shim compiles against $version"
else
	die "the shim does not compile against $version" "adapt spdk-sys/shim, the only place that knows versions"
fi
