#!/usr/bin/env bash
# Gets everything that presnap needs and cargo does not fetch: Debian packages, SPDK, and SPDK's fio plugin.
#
# What is built goes to <cache>/spdk-<key> and <cache>/fio-<key>. The key is a hash of all that goes into
# the build: source, recipe (the recipe_* functions below, word by word), compiler, target architecture.
# <cache>/spdk and <cache>/fio point to the builds in use; they are switched only to a finished and checked
# build. Each stage leaves a mark when it is done, so that an interrupted run goes on where it was.
# Stages run as arguments of run_stage, which shellcheck takes for unreachable code:
# shellcheck disable=SC2317
set -euo pipefail

# Sorting and messages of tools are the same everywhere.
export LC_ALL=C
scripts_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$scripts_dir/lib.sh"

# --- what is built ---------------------------------------------------------------------------------

spdk_version=20.07
# Debian carries SPDK's source inside ceph's; bookworm's own ceph is not on every mirror, trixie's is.
ceph_suite=trixie
ceph_tar_bytes=148306992
ceph_tar_sha256=71c0795fa0d6312ec7b57dee4031559b7e62e086a78e6ae1ad8549e0b351e28f
# Of src/spdk alone, as content_hash computes it: this is what counts when ceph itself moves on.
spdk_content_sha256=06d0e6765a9f6b71defaf89b45d32f63b4eac1fb6ecc028d3be35c64618dfbd8
# The plugin is loaded into Debian's fio and must have been compiled for that very version.
fio_version=3.33
fio_tar_sha256=d2410e13e0f379d061d077cc5ae325835bb7c6186aa7bafc1df954cbc9b014fc
target_arch=${PRESNAP_TARGET_ARCH:-x86-64-v2}

# The first Rust that has what the code uses; the same as rust-version in Cargo.toml.
rust_version_min=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$scripts_dir/../Cargo.toml")

packages_build=(
	gcc g++ make patch libc6-dev binutils procps python3 dpkg-dev xz-utils ca-certificates debian-archive-keyring
	pkg-config autoconf automake libtool nasm meson ninja-build
	libaio-dev libnuma-dev uuid-dev libssl-dev libcunit1-dev liburing-dev libncurses-dev zlib1g-dev
)
packages_rust=(libclang-dev clang)
packages_run=(fio util-linux mount)
packages_test=(shellcheck)

# Measured on two cores, in seconds; only the estimates of the time left depend on them.
declare -A stage_seconds=(
	[packages]=25 [download]=10 [unpack]=12 [fio]=4 [configure]=6 [dpdk]=30 [spdk]=45 [check]=3
)
stage_order=(packages download unpack fio configure dpdk spdk check)

# --- recipes: whatever changes in here makes a new key -----------------------------------------------

# In a fresh source tree.
recipe_spdk_patch() {
	# glibc has arc4random since 2.36; SPDK then defines a second one.
	sed -i 's/^#define MAX_TMPBUF 1024$/&\n\n#if defined(__GLIBC__) \&\& __GLIBC_PREREQ(2, 36)\n#define HAVE_ARC4RANDOM 1\n#endif/' \
		lib/iscsi/iscsi.c
	grep -q '^#define HAVE_ARC4RANDOM 1$' lib/iscsi/iscsi.c
	# Line numbers and backtraces are enough: a tenth of the debug information.
	sed -i 's/^COMMON_CFLAGS = -g /COMMON_CFLAGS = -g1 /' mk/spdk.common.mk
	grep -q '^COMMON_CFLAGS = -g1 ' mk/spdk.common.mk
}

# All of SPDK's objects are compiled with -fPIC, so the archives go into position-independent programs.
recipe_spdk_configure() {
	./configure --disable-tests --disable-unit-tests --with-uring --target-arch="$target_arch" --with-fio="$fio_dir"
}

# EXTRA_DPDK_CFLAGS is added to DPDK's flags; DPDK_CFLAGS would replace them, -fPIC among them.
recipe_dpdk_make() {
	make include/spdk/config.h
	make -j "$jobs" -C isalbuild all
	make -C dpdkbuild all MAKE_NUMJOBS="-j $jobs" EXTRA_DPDK_CFLAGS="-fcommon -Wno-error"
}

recipe_spdk_make() {
	make -j "$jobs" MAKE_NUMJOBS="-j $jobs" EXTRA_DPDK_CFLAGS="-fcommon -Wno-error"
}

recipe_spdk_finish() {
	make -j "$jobs" -C test/bdev/bdevperf
	# Two things that a careless link line would pick up: mocks of SPDK's functions, and DPDK's shared
	# libraries beside the archives.
	rm -f build/lib/libspdk_ut_mock.a
	find dpdk/build/lib -name '*.so*' -delete
}

# SPDK's plugin needs fio's headers and its configuration, not the program.
recipe_fio_configure() {
	./configure --disable-native
}

# --- arguments -------------------------------------------------------------------------------------

usage() {
	cat <<EOF
Usage: scripts/setup.sh [OPTION]

Installs the Debian packages that presnap needs, and builds SPDK $spdk_version with its fio plugin into a
cache folder. Does only what is missing, may be interrupted at any time, and goes on where it was.
Afterwards 'cargo build' finds SPDK by itself.

  --check           do nothing; status 0 when everything is in place, 1 when not
  --print-spdk-dir  do the setup, then print the path of the SPDK tree on standard output
  --prune           do the setup, then remove downloads and older builds from the cache
  --tests           install what only scripts/test.sh needs, too
  --jobs N          run N compilers at once (default: one per core, here $(nproc))
  --help            this text

Environment:
  PRESNAP_CACHE        the cache folder (default: \$XDG_CACHE_HOME/presnap, else ~/.cache/presnap)
  SPDK_DIR             a built SPDK tree to use instead: nothing is built, the tree is checked
  PRESNAP_TARGET_ARCH  what gcc's -march gets (default: x86-64-v2, any processor since about 2010)

Examples:
  scripts/setup.sh                               as root on a fresh Debian 12
  scripts/setup.sh --check && cargo build        build only when the setup is complete
  PRESNAP_CACHE=/srv/presnap scripts/setup.sh    keep 0.5 GB away from the home folder
  SPDK_DIR=/opt/spdk scripts/setup.sh            use your own SPDK (recommended in production: a current one)

Status: 0 done, 1 failed (the message says what to do), 2 wrong usage.
EOF
}

mode=setup
prune=no
print_dir=no
jobs=$(nproc)
while (($# > 0)); do
	case $1 in
	--check) mode=check ;;
	--print-spdk-dir) print_dir=yes ;;
	--prune) prune=yes ;;
	--tests) packages_run+=("${packages_test[@]}") ;;
	--jobs)
		jobs=${2:-}
		[[ $jobs =~ ^[1-9][0-9]*$ ]] || die "--jobs needs a number" "see scripts/setup.sh --help" 2
		shift
		;;
	-h | --help)
		usage
		exit 0
		;;
	*) die "unknown argument '$1'" "see scripts/setup.sh --help" 2 ;;
	esac
	shift
done

# --- stages ----------------------------------------------------------------------------------------

setup_started=$EPOCHREALTIME
stage_pid=
resumed=no

seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%d", b - a }'; }

stop_stage() {
	[[ -n $stage_pid ]] || return 0
	kill -TERM -- "-$stage_pid" 2>/dev/null || true
	wait "$stage_pid" 2>/dev/null || true
	stage_pid=
	log "interrupted: what is finished is kept, run scripts/setup.sh again to go on"
}

# How far the running stage is, in percent: by the size of a file that it downloads, or by the lines of
# its log, which builds write at a known number.
stage_percent() {
	local kind=${1%%:*} total=${1#*:} done_so_far=0
	case $kind in
	lines) done_so_far=$(wc -l <"$log_file") ;;
	bytes) done_so_far=$(cat "$cache"/downloads/partial/*.tar.* 2>/dev/null | wc -c) ;;
	*) return 0 ;;
	esac
	printf '%s' $((done_so_far * 100 / total))
}

report_progress() {
	local stage=$1 elapsed=$2 percent=$3 left=$((stage_seconds[$1] - $2)) rest=0 name seen=no line
	((percent > 99)) && percent=99
	((percent > 5)) && left=$((elapsed * (100 - percent) / percent))
	((left < 1)) && left=1
	for name in "${stage_order[@]}"; do
		[[ $seen == yes ]] && rest=$((rest + stage_seconds[$name]))
		[[ $name == "$stage" ]] && seen=yes
	done
	line="$stage: $(minutes "$elapsed") elapsed${3:+, $percent%}, about $(minutes "$left") left; all stages: about $(minutes $((left + rest))) left"
	if [[ -t 2 ]]; then
		printf '\r\033[K%s: %s' "$script_name" "$line" >&2
	else
		log "$line"
	fi
}

# run_stage NAME PROGRESS WHAT REMEDY COMMAND...: COMMAND in the background in a process group of its own,
# its output in a log. PROGRESS is lines:N, bytes:N or none.
run_stage() {
	local name=$1 progress=$2 what=$3 remedy=$4 started=$EPOCHREALTIME ticks=0 period=75
	shift 4
	log_file=$cache/logs/$name.log
	[[ -f $log_file ]] && mv -f "$log_file" "$log_file.old"
	log "$name: $what (log: $log_file)"
	[[ -t 2 ]] && period=5
	set -m
	(
		set -euo pipefail
		# Nothing of the caller's build may leak into this one.
		unset MAKEFLAGS MFLAGS MAKELEVEL CC CXX LD CFLAGS CXXFLAGS CPPFLAGS LDFLAGS DESTDIR prefix TARGET_ARCHITECTURE
		"$@"
	) >"$log_file" 2>&1 </dev/null &
	stage_pid=$!
	set +m
	while kill -0 "$stage_pid" 2>/dev/null; do
		sleep 0.2
		ticks=$((ticks + 1))
		((ticks % period)) || report_progress "$name" "$(seconds_since "$started")" "$(stage_percent "$progress")"
	done
	[[ -t 2 ]] && printf '\r\033[K' >&2
	if wait "$stage_pid"; then
		stage_pid=
		log "$name: done in $(minutes "$(seconds_since "$started")")"
		return 0
	fi
	stage_pid=
	printf -- '--- the last lines of %s:\n' "$log_file" >&2
	tail -n 25 "$log_file" >&2
	printf -- '---\n' >&2
	if [[ $resumed == yes ]]; then
		rm -rf "$spdk_dir"
		remedy="this was the rest of an interrupted build, which is now removed: run scripts/setup.sh again to begin anew"
	fi
	die "stage '$name' failed ($what); the whole log is $log_file" "$remedy"
}

# --- packages --------------------------------------------------------------------------------------

missing_packages() {
	local package
	declare -A installed=()
	while read -r package; do
		installed[$package]=1
	done < <(dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p')
	for package in "$@"; do
		[[ -n ${installed[$package]:-} ]] || printf '%s\n' "$package"
	done
}

install_packages() {
	local apt=(apt-get -q -o DPkg::Lock::Timeout=300)
	local install=("${apt[@]}" install --yes --no-remove --no-install-recommends "$@") package
	export DEBIAN_FRONTEND=noninteractive
	for package in "$@"; do
		if ! apt-cache show --no-all-versions "$package" >/dev/null 2>&1; then
			echo "no candidate for $package in the package lists: updating them"
			"${apt[@]}" update
			"${install[@]}"
			return
		fi
	done
	# Lists that are some weeks old name versions that are gone.
	"${install[@]}" || { "${apt[@]}" update && "${install[@]}"; }
}

setup_packages() {
	local missing
	mapfile -t missing < <(missing_packages "$@")
	((${#missing[@]} == 0)) && return 0
	if ((EUID != 0)); then
		die "Debian packages are missing: ${missing[*]}" \
			"as root: apt-get update && apt-get install --no-remove ${missing[*]}"
	fi
	run_stage packages none "installing Debian packages, ${#missing[@]} in number" \
		"look at the log; then as root: apt-get update && apt-get install --no-remove ${missing[*]}" \
		install_packages "${missing[@]}"
}

check_rust() {
	local version
	if ! version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || [[ -z $version ]]; then
		die "cargo is not installed (or not in PATH)" \
			"install Rust $rust_version_min or newer, for example with rustup (Debian 12's own is too old)"
	fi
	if [[ $(printf '%s\n' "$rust_version_min" "$version" | sort -V | head -n 1) != "$rust_version_min" ]]; then
		die "cargo $version is too old" "install Rust $rust_version_min or newer, for example: rustup update stable"
	fi
}

check_machine() {
	local codename machine
	machine=$(uname -m)
	# shellcheck source=/dev/null
	codename=$(source /etc/os-release && printf '%s' "${VERSION_CODENAME:-unknown}")
	if [[ $codename != bookworm || $machine != x86_64 ]]; then
		die "this script knows Debian 12 (bookworm) on x86_64, not '$codename' on $machine" \
			"build SPDK by its own instructions, then: SPDK_DIR=<built tree> scripts/setup.sh"
	fi
}

# --- download --------------------------------------------------------------------------------------

# apt-get with its own sources, lists and cache: the system's are neither used nor changed, but for the
# network settings in apt.conf. Signatures are checked against Debian's keyring.
private_apt() {
	apt-get -q \
		-o Dir::Etc::SourceList="$cache/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt/cache" \
		-o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Update::Error-Mode=any \
		-o Acquire::AllowInsecureRepositories=false -o APT::Get::AllowUnauthenticated=false \
		-o APT::Sandbox::User="$(id -un)" "$@"
}

# The mirrors that this machine gets its Debian packages from, best first.
debian_mirrors() {
	# shellcheck disable=SC2016  # apt fills these in, not the shell
	apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)' |
		sed -n 's/^Debian|bookworm|main|//p' | sort -u
}

# Finds a mirror that has the suite and reads its list of sources.
update_private_apt() {
	local mirrors mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	mkdir -p "$cache"/apt/{lists,cache/archives}/partial
	mapfile -t mirrors < <(debian_mirrors)
	if ((${#mirrors[@]} == 0 && EUID == 0)); then
		echo "the package lists are empty: updating them"
		apt-get -q -o DPkg::Lock::Timeout=300 update
		mapfile -t mirrors < <(debian_mirrors)
	fi
	if ((${#mirrors[@]} == 0)); then
		echo "apt's configuration on this machine names no mirror of Debian 12 (bookworm, main)"
		return 1
	fi
	for mirror in "${mirrors[@]}"; do
		printf 'deb-src [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$ceph_suite" "$keyring" "$mirror" bookworm \
			>"$cache/apt/sources.list"
		private_apt update && return 0
	done
	return 1
}

# fetch_source PACKAGE SUITE: its upstream tarball to downloads/, with a note of its name and hash that is
# written last. apt resumes a download that was cut short, and checks its hash.
fetch_source() {
	local package=$1 suite=$2 partial=$cache/downloads/partial tarball
	mkdir -p "$partial"
	(cd "$partial" && private_apt source --download-only --tar-only "$package/$suite")
	tarball=$(find "$partial" -name "${package}_*.orig.tar.?z" -printf '%f\n')
	[[ -n $tarball && $tarball != *$'\n'* ]] || { echo "expected one tarball of $package, found: $tarball"; return 1; }
	mv -f "$partial/$tarball" "$cache/downloads/$tarball"
	(cd "$cache/downloads" && sha256sum "$tarball") >"$cache/downloads/$package.sha256.new"
	mv -f "$cache/downloads/$package.sha256.new" "$cache/downloads/$package.sha256"
}

have_source() { (cd "$cache/downloads" && sha256sum --status --check "$1.sha256") 2>/dev/null; }

source_tarball() { printf '%s/downloads/%s' "$cache" "$(sed 's/^[0-9a-f]*  //' "$cache/downloads/$1.sha256")"; }

fetch_sources() {
	update_private_apt
	have_source fio || fetch_source fio bookworm
	have_source ceph || fetch_source ceph "$ceph_suite"
}

# --- build -----------------------------------------------------------------------------------------

# One hash for all files of a folder: names, contents, links.
content_hash() {
	(
		cd "$1"
		{
			find . -type f -print0 | sort -z | xargs -0 sha256sum
			find . -type l -printf '%p -> %l\n' | sort
		} | sha256sum | cut -d ' ' -f 1
	)
}

mark() { printf '%s\n' "${3:-done}" >"$1/.presnap/$2.new" && mv -f "$1/.presnap/$2.new" "$1/.presnap/$2"; }

marked() { [[ -f $1/.presnap/$2 ]]; }

# A tree counts only where it was built (its path is in its makefiles) and for the key that it was built
# for. After a crash of the machine, unfinished files may be anything: so an unfinished tree also has to
# be from this boot.
origin() { printf 'key=%s path=%s\n' "$1" "$2"; }
boot_id() { cat /proc/sys/kernel/random/boot_id; }

complete() {
	local dir=$1 key=$2
	[[ $(cat "$dir/.presnap/complete" 2>/dev/null) == "$(origin "$key" "$dir")" ]] &&
		(cd "$dir" && sha256sum --quiet --status --check .presnap/manifest)
}

# A killed compiler or linker may have left half-written files: those of the last seconds.
drop_youngest_files() {
	local outputs=(lib module app examples test build -type f
		'(' -name '*.o' -o -name '*.a' -o -path 'build/bin/*' -o -path 'build/fio/*' -o -path 'build/examples/*' ')')
	local newest
	newest=$(find "${outputs[@]}" -printf '%T@\n' | sort -n | tail -n 1)
	[[ -n $newest ]] || return 0
	echo "going on with an interrupted build: dropping what it wrote in its last 5 seconds"
	find "${outputs[@]}" -newermt "@$(awk -v t="$newest" 'BEGIN { printf "%.3f", t - 5 }')" -print -delete
}

unpack_spdk() {
	local tarball content fresh=$spdk_dir.unpacking
	tarball=$(source_tarball ceph)
	rm -rf "$fresh" "$spdk_dir"
	mkdir -p "$fresh"
	# From <ceph>/src/spdk/... to ...
	tar --extract --file "$tarball" --directory "$fresh" --no-same-owner --wildcards --strip-components=3 '*/src/spdk'
	content=$(content_hash "$fresh")
	echo "content of src/spdk: $content"
	if [[ $content != "$spdk_content_sha256" ]]; then
		echo "src/spdk in ${tarball##*/} is not SPDK $spdk_version as presnap knows it ($spdk_content_sha256)"
		# Another time the mirror may have another one.
		rm -rf "$fresh" "$cache/downloads/ceph.sha256"
		return 1
	fi
	(cd "$fresh" && recipe_spdk_patch)
	mkdir "$fresh/.presnap"
	mark "$fresh" origin "$(origin "$spdk_key" "$spdk_dir")"
	mark "$fresh" boot "$(boot_id)"
	mv -T "$fresh" "$spdk_dir"
}

build_fio() {
	rm -rf "$fio_dir"
	mkdir -p "$fio_dir/.presnap"
	tar --extract --file "$(source_tarball fio)" --directory "$fio_dir" --no-same-owner --strip-components=1
	cd "$fio_dir"
	recipe_fio_configure
	sha256sum config-host.h fio.h optgroup.h >.presnap/manifest
	mark "$fio_dir" complete "$(origin "$fio_key" "$fio_dir")"
}

configure_spdk() {
	cd "$spdk_dir"
	recipe_spdk_configure
	mark "$spdk_dir" configured
}

# DPDK's build takes seconds and does not survive an interruption everywhere: always from the start.
make_dpdk() {
	cd "$spdk_dir"
	rm -rf dpdk/build dpdk/build-tmp
	make -C isa-l clean >/dev/null
	recipe_dpdk_make
	mark "$spdk_dir" dpdk
}

make_spdk() {
	cd "$spdk_dir"
	if marked "$spdk_dir" spdk-begun; then drop_youngest_files; fi
	mark "$spdk_dir" spdk-begun
	recipe_spdk_make
	mark "$spdk_dir" spdk
}

# What the project relies on. A build that lacks any of it must not be used.
check_spdk() {
	local name absent=0
	cd "$spdk_dir"
	recipe_spdk_finish
	for name in bdev{,_malloc,_null,_aio,_uring,_delay,_error,_passthru,_split,_lvol,_nvme,_gpt,_raid,_rpc} nvmf nvme \
		event{,_bdev,_nvmf,_sock,_accel,_vmd} rpc jsonrpc json app_rpc log_rpc env_dpdk{,_rpc} sock_posix thread util; do
		[[ -s build/lib/libspdk_$name.a ]] || { echo "missing: libspdk_$name.a"; absent=1; }
	done
	for name in dpdk/build/lib/librte_{eal,mempool,ring,mbuf,mempool_ring,pci,bus_pci,telemetry,kvargs}.a \
		isa-l/.libs/libisal.a build/bin/{spdk_tgt,nvmf_tgt} build/fio/spdk_bdev test/bdev/bdevperf/bdevperf \
		include/spdk/bdev_module.h dpdk/build/include/rte_config.h scripts/rpc.py; do
		[[ -s $name ]] || { echo "missing: $name"; absent=1; }
	done
	((absent == 0))
	echo "every archive linked into one position-independent program:"
	readelf --file-header build/bin/spdk_tgt | grep 'Type:.*DYN'
	if readelf --dynamic build/bin/spdk_tgt build/fio/spdk_bdev | grep TEXTREL; then
		echo "text relocations: not all objects are position-independent"
		return 1
	fi
	build/bin/spdk_tgt --version 2>&1 | grep -F "SPDK v$spdk_version"
	nm --dynamic build/bin/spdk_tgt >/dev/null
	grep -q 'U spdk_bdev' <(nm --undefined-only build/fio/spdk_bdev) && { echo "the fio plugin lacks SPDK functions"; return 1; }
	find build/lib build/bin build/fio build/examples test/bdev/bdevperf/bdevperf dpdk/build/lib dpdk/build/include \
		isa-l/.libs/libisal.a include scripts/rpc.py scripts/rpc mk/config.mk -type f ! -name '*.pyc' -print0 |
		sort -z | xargs -0 sha256sum >.presnap/manifest
	sync --file-system .presnap/manifest
	mark "$spdk_dir" complete "$(origin "$spdk_key" "$spdk_dir")"
}

# point NAME TARGET: <cache>/NAME becomes a link to TARGET in one step.
point() {
	[[ $(readlink "$cache/$1" 2>/dev/null) == "${2##*/}" ]] && return 0
	ln -sfn "${2##*/}" "$cache/$1.new"
	mv -fT "$cache/$1.new" "$cache/$1"
}

# Forget a tree that is not from this key, path and boot.
discard_foreign_tree() {
	[[ -e $spdk_dir ]] || return 0
	if [[ $(cat "$spdk_dir/.presnap/origin" 2>/dev/null) == "$(origin "$spdk_key" "$spdk_dir")" &&
		$(cat "$spdk_dir/.presnap/boot" 2>/dev/null) == "$(boot_id)" ]] && ! marked "$spdk_dir" complete; then
		log "going on with the unfinished build in $spdk_dir"
		resumed=yes
		return 0
	fi
	log "$spdk_dir is not what it should be (changed, moved, or unfinished at a crash): building it anew"
	rm -rf "$spdk_dir"
}

build_all() {
	local remedy_build="look at the log; to begin anew: rm -rf $spdk_dir; or give a built tree: SPDK_DIR=<tree> scripts/setup.sh"
	local remedy_net="check that the machine reaches its Debian mirror (apt-get update), then run this again: it goes on where it was"
	local fio_installed
	fio_installed=$(dpkg-query --show --showformat '${source:Upstream-Version}' fio)
	if [[ $fio_installed != "$fio_version" ]]; then
		die "the installed fio is $fio_installed, the plugin is for $fio_version" "install Debian 12's fio: apt-get install fio/bookworm"
	fi
	discard_foreign_tree
	if ! marked "$spdk_dir" origin || ! complete "$fio_dir" "$fio_key"; then
		if ! have_source ceph || ! have_source fio; then
			run_stage download "bytes:$ceph_tar_bytes" "the sources of SPDK (148 MB) and fio (6 MB)" "$remedy_net" fetch_sources
		fi
		if [[ $(cut -d ' ' -f 1 "$cache/downloads/fio.sha256") != "$fio_tar_sha256" ]]; then
			die "the source of fio is not the $fio_version that presnap knows" "give a built tree: SPDK_DIR=<tree> scripts/setup.sh"
		fi
		if [[ $(cut -d ' ' -f 1 "$cache/downloads/ceph.sha256") != "$ceph_tar_sha256" ]]; then
			log "the mirror has another version of ceph than expected: SPDK's own files in it decide"
		fi
	fi
	if ! marked "$spdk_dir" origin; then
		run_stage unpack none "unpacking SPDK and checking it against its pinned hash" \
			"if the log says that src/spdk differs, Debian has moved on: build SPDK $spdk_version yourself and set SPDK_DIR" unpack_spdk
	fi
	complete "$fio_dir" "$fio_key" || run_stage fio none "configuring fio's headers for the plugin" "$remedy_build" build_fio
	marked "$spdk_dir" configured || run_stage configure none "configuring SPDK" "$remedy_build" configure_spdk
	marked "$spdk_dir" dpdk || run_stage dpdk lines:1107 "compiling DPDK and ISA-L" "$remedy_build" make_dpdk
	marked "$spdk_dir" spdk || run_stage spdk lines:413 "compiling SPDK" "$remedy_build" make_spdk
	run_stage check none "checking the build" "$remedy_build" check_spdk
	complete "$spdk_dir" "$spdk_key" || die "the finished build does not pass its own check" "$remedy_build"
}

# --- a tree that the user gives --------------------------------------------------------------------

check_given_tree() {
	local dir=$1 version file dpdk
	local remedy="build it (./configure --disable-tests --disable-unit-tests --with-uring && make), or unset SPDK_DIR"
	[[ -d $dir ]] || die "SPDK_DIR: there is no folder $dir" "give the path of a built SPDK tree, or unset SPDK_DIR"
	for file in include/spdk/version.h include/spdk/bdev_module.h mk/config.mk; do
		[[ -f $dir/$file ]] || die "SPDK_DIR: $dir is not a configured SPDK source tree: $file is missing" "$remedy"
	done
	for file in bdev nvmf event event_bdev event_nvmf env_dpdk bdev_malloc bdev_aio sock_posix; do
		[[ -s $dir/build/lib/libspdk_$file.a ]] ||
			die "SPDK_DIR: $dir has not been built: build/lib/libspdk_$file.a is missing" "$remedy"
	done
	dpdk=$(sed -n 's/^CONFIG_DPDK_DIR[?:]*=//p' "$dir/mk/config.mk" | tail -n 1)
	if ! compgen -G "${dpdk:-$dir/dpdk/build}/lib/librte_eal.*" >/dev/null &&
		! compgen -G "${dpdk:-$dir/dpdk/build}/lib/*/librte_eal.*" >/dev/null; then
		die "SPDK_DIR: $dir was built against DPDK in ${dpdk:-$dir/dpdk/build}, which has no librte_eal" \
			"SPDK trees cannot be moved after the build; build it where it is"
	fi
	[[ -s $dir/build/fio/spdk_bdev ]] ||
		warn "SPDK_DIR: $dir has no fio plugin: the demo and the fio tests need it (configure --with-fio=<fio $fio_version source>)"
	version=$(awk '$1 $2 == "#defineSPDK_VERSION_MAJOR" { major = $3 } $1 $2 == "#defineSPDK_VERSION_MINOR" { minor = $3 }
		END { printf "%d.%02d", major, minor }' "$dir/include/spdk/version.h")
	log "using SPDK $version in $dir"
}

# --- main ------------------------------------------------------------------------------------------

finish() {
	if [[ $prune == yes && -z ${SPDK_DIR:-} ]]; then
		find "$cache" -mindepth 1 -maxdepth 1 \( -name 'spdk-*' -o -name 'fio-*' \) ! -path "$spdk_dir" ! -path "$fio_dir" \
			-exec rm -rf {} +
		rm -rf "$cache/downloads" "$cache/apt"
		log "removed downloads and older builds from $cache"
	fi
	log "$1"
	[[ $print_dir == yes ]] && printf '%s\n' "$(spdk_dir)"
	exit 0
}

check_rust
cache=$(cache_dir)

if [[ -n ${SPDK_DIR:-} ]]; then
	check_given_tree "$(spdk_dir)"
	if [[ $mode == check ]]; then
		mapfile -t missing < <(missing_packages "${packages_rust[@]}" "${packages_run[@]}")
		((${#missing[@]} == 0)) || die "Debian packages are missing: ${missing[*]}" "run scripts/setup.sh as root"
	elif command -v dpkg-query >/dev/null; then
		mkdir -p "$cache/logs"
		on_exit stop_stage
		setup_packages gcc libc6-dev pkg-config libaio-dev libnuma-dev uuid-dev libssl-dev liburing-dev \
			"${packages_rust[@]}" "${packages_run[@]}"
	fi
	finish "ready: SPDK in $(spdk_dir)"
fi

check_machine
packages=("${packages_build[@]}" "${packages_rust[@]}" "${packages_run[@]}")
# The compiler goes into the key, so it has to be there first; the rest may come later.
compiler=$(gcc -dumpfullversion 2>/dev/null || true)

compute_keys() {
	compiler=$(gcc -dumpfullversion)
	fio_key=$(printf '%s\n' "$fio_tar_sha256" "$compiler" "$(declare -f recipe_fio_configure)" | sha256sum | cut -c 1-16)
	fio_dir=$cache/fio-$fio_key
	spdk_key=$(printf '%s\n' "$spdk_content_sha256" "$fio_key" "$compiler" "$target_arch" \
		"$(declare -f recipe_spdk_patch recipe_spdk_configure recipe_dpdk_make recipe_spdk_make recipe_spdk_finish)" | sha256sum | cut -c 1-16)
	spdk_dir=$cache/spdk-$spdk_key
}

in_place() {
	[[ -n $compiler ]] || return 1
	compute_keys
	[[ -z $(missing_packages "${packages[@]}") ]] && complete "$fio_dir" "$fio_key" && complete "$spdk_dir" "$spdk_key" &&
		[[ $(readlink "$cache/spdk") == "${spdk_dir##*/}" && $(readlink "$cache/fio") == "${fio_dir##*/}" ]]
}

if in_place; then
	finish "ready: SPDK $spdk_version in $cache/spdk"
fi
[[ $mode == check ]] && die "the setup is not complete (cache: $cache)" "run scripts/setup.sh as root"

mkdir -p "$cache/logs" "$cache/downloads" 2>/dev/null || die "cannot write to the cache folder $cache" "set PRESNAP_CACHE to a folder of yours"
if (($(df --output=avail --block-size=1M "$cache" | tail -n 1) < 1500)); then
	die "less than 1.5 GB free in $cache" "free some space, or set PRESNAP_CACHE to a folder on another disk"
fi
on_exit stop_stage
lock_file "$cache/setup.lock"
setup_packages "${packages[@]}"
compute_keys
if ! grep -qw sse4_2 /proc/cpuinfo && [[ $target_arch == x86-64-v* ]]; then
	die "this processor lacks SSE4.2, which $target_arch code needs" "build SPDK for it yourself and set SPDK_DIR"
fi
# Another run may have finished the build while this one waited for the lock.
if ! complete "$fio_dir" "$fio_key" || ! complete "$spdk_dir" "$spdk_key"; then
	build_all
fi
point fio "$fio_dir"
point spdk "$spdk_dir"
finish "ready in $(minutes "$(seconds_since "$setup_started")"): SPDK $spdk_version in $cache/spdk"
