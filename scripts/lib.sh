# shellcheck shell=bash
# Functions that the scripts in this folder share. Source it; it runs nothing by itself.
#
#   messages    log, warn, die
#   leaving     on_exit                          commands to run when the script ends, last one first
#   cache       cache_dir, spdk_dir, lock_file
#   cargo       cargo_target
#   hugepages   hugepages_reserve, hugepages_release, hugepages_sweep
#   waiting     wait_until, minutes
#
# Messages go to standard error, so that a script's standard output stays free for its result.

[[ -n ${PRESNAP_LIB_SOURCED:-} ]] && return 0
PRESNAP_LIB_SOURCED=1

script_name=${0##*/}

log() { printf '%s: %s\n' "$script_name" "$*" >&2; }
warn() { printf '%s: warning: %s\n' "$script_name" "$*" >&2; }

# die MESSAGE [REMEDY] [STATUS]: one line for what is wrong, one for what to do about it.
die() {
	printf '%s: error: %s\n' "$script_name" "$1" >&2
	[[ -n ${2:-} ]] && printf '%s: to do: %s\n' "$script_name" "$2" >&2
	exit "${3:-1}"
}

# --- leaving ---------------------------------------------------------------------------------------

_on_exit_commands=()

_on_exit_run() {
	local status=$? i
	trap - EXIT
	trap '' INT TERM
	for ((i = ${#_on_exit_commands[@]} - 1; i >= 0; i--)); do
		eval "${_on_exit_commands[i]}" || true
	done
	exit "$status"
}

# on_exit COMMAND: run COMMAND when the script ends, also after Ctrl-C or a kill. In a subshell: when that
# ends, and only what was named in it.
on_exit() {
	if [[ ${_on_exit_shell:-} != "$BASHPID" ]]; then
		_on_exit_shell=$BASHPID
		_on_exit_commands=()
		trap _on_exit_run EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM
		trap 'exit 129' HUP
	fi
	_on_exit_commands+=("$1")
}

# --- cache -----------------------------------------------------------------------------------------

# The folder for everything that is downloaded or built outside of cargo. Absolute, without spaces
# (SPDK's makefiles cannot take one).
cache_dir() {
	local dir=${PRESNAP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/presnap}
	dir=$(realpath -ms -- "$dir")
	if [[ $dir =~ [[:space:]] ]]; then
		die "the cache folder's path has a space in it: '$dir'" "set PRESNAP_CACHE to a path without spaces"
	fi
	printf '%s\n' "$dir"
}

# The SPDK tree to use: SPDK_DIR when given, else the one that setup.sh built.
spdk_dir() {
	if [[ -n ${SPDK_DIR:-} ]]; then
		realpath -ms -- "$SPDK_DIR"
	else
		printf '%s/spdk\n' "$(cache_dir)"
	fi
}

# lock_file FILE [SECONDS]: hold FILE's lock until this script ends. Says so when it has to wait; gives
# up after SECONDS (default: one hour, longer than any setup takes). Processes started by the script
# inherit the lock, so that a build whose script was killed still keeps others out.
lock_file() {
	local file=$1 seconds=${2:-3600} holder=
	exec {lock_fd}>>"$file" || die "cannot write to $file" "check the folder's owner and permissions"
	if ! flock --nonblock "$lock_fd"; then
		holder=$(<"$file.holder") 2>/dev/null || true
		log "waiting for another run${holder:+ (process $holder)} that holds $file"
		flock --timeout "$seconds" "$lock_fd" ||
			die "another run held $file for $seconds s" "end process ${holder:-that holds it}, then run this again"
	fi
	printf '%s\n' "$$" >"$file.holder"
}

# --- cargo ---------------------------------------------------------------------------------------

# Builds of dependencies, in all variants, take a quarter of this.
_cargo_target_mib_max=8192

# cargo_target: sets CARGO_TARGET_DIR to the folder that cargo builds into, and keeps other scripts out of it
# until this one ends. Kept in the cache, so that a fresh clone need not compile what is not
# the project's. cargo tells old from new by time stamps, and gives what it makes names without the path: a
# clone of another commit, or of another moment, would pass for this one. So what was made of the project's
# own crates is forgotten, unless it is known to be of this very tree in this place with this very SPDK.
cargo_target() {
	local version tree
	export CARGO_TARGET_DIR
	if [[ -n ${CARGO_TARGET_DIR:-} ]]; then
		CARGO_TARGET_DIR=$(realpath -ms -- "$CARGO_TARGET_DIR")
		return 0
	fi
	version=$(rustc --version --verbose | sha256sum | cut -c 1-12)
	CARGO_TARGET_DIR=$(cache_dir)/target-$version
	mkdir -p "$CARGO_TARGET_DIR"
	lock_file "$CARGO_TARGET_DIR/presnap.lock" 5400
	if (($(du -sm "$CARGO_TARGET_DIR" | cut -f 1) > _cargo_target_mib_max)); then
		log "more than $_cargo_target_mib_max MiB of older builds in $CARGO_TARGET_DIR: removing them"
		find "$CARGO_TARGET_DIR" -mindepth 1 -maxdepth 1 ! -name 'presnap.*' -exec rm -rf {} +
	fi
	# A fresh clone has no use for the pieces of the build before.
	export CARGO_INCREMENTAL=0
	tree=$(
		{
			pwd
			realpath -m -- "$(spdk_dir)"
			find . \( -path ./target -o -path ./.git \) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
		} | sha256sum
	)
	if [[ $(cat "$CARGO_TARGET_DIR/presnap.tree" 2>/dev/null) != "$tree" ]]; then
		rm -f "$CARGO_TARGET_DIR/presnap.tree"
		find "$CARGO_TARGET_DIR" -type d -path '*/.fingerprint/*' \( -name 'presnap-*' -o -name 'spdk-sys-*' \) \
			-prune -exec rm -rf {} +
		printf '%s\n' "$tree" >"$CARGO_TARGET_DIR/presnap.tree"
	fi
}

# --- waiting ---------------------------------------------------------------------------------------

# minutes SECONDS: as m:ss.
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# wait_until SECONDS COMMAND...: try COMMAND ten times a second until it succeeds; status 1 when it
# does not within SECONDS.
wait_until() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < deadline)) || return 1
		sleep 0.1
	done
}

# --- hugepages -------------------------------------------------------------------------------------
# SPDK's memory comes from 2 MiB hugepages. Scripts reserve what they need for as long as they run.
# Several may run at once, and one may be killed before it could give its pages back: so a ledger says
# what the count was before the first one (base), and which living process claimed how many pages. The
# kernel's count is always derived from the ledger, and goes back to base with the last claim.

hugepage_kib=2048
# Memory that a reservation must leave to everyone else.
hugepages_leave_kib=$((512 * 1024))
_hugepages_kernel=/sys/kernel/mm/hugepages/hugepages-${hugepage_kib}kB
_hugepages_mount=/dev/hugepages
_hugepages_ledger=/run/presnap-hugepages

# A process id alone may be reused: with its start time it is unique until the next boot.
_process_start() {
	local line
	line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	line=${line##*) }
	cut -d ' ' -f 20 <<<"$line"
}

_hugepages_lock() {
	exec {_hugepages_fd}>>"$_hugepages_ledger/lock"
	flock "$_hugepages_fd"
}

_hugepages_unlock() {
	exec {_hugepages_fd}>&-
}

# Sets claimed_pages to the sum of the claims of living processes; drops the others.
_hugepages_sum_claims() {
	local claim pid start
	claimed_pages=0
	for claim in "$_hugepages_ledger"/claim.*; do
		[[ -e $claim ]] || continue
		pid=${claim##*/claim.}
		start=${pid#*.}
		pid=${pid%%.*}
		if [[ $(_process_start "$pid") == "$start" ]]; then
			claimed_pages=$((claimed_pages + $(<"$claim")))
		else
			rm -f "$claim"
		fi
	done
}

# Sets the kernel's count to what the ledger asks for. Status 1 when the kernel gives less.
_hugepages_apply() {
	local base base_free target mounted have more_kib
	read -r base base_free _ mounted <"$_hugepages_ledger/state"
	_hugepages_sum_claims
	target=$((base - base_free + claimed_pages))
	((target < base)) && target=$base
	printf '%s %s %s %s\n' "$base" "$base_free" "$target" "$mounted" >"$_hugepages_ledger/state"
	have=$(<"$_hugepages_kernel/nr_hugepages")
	# Asked for too much, the kernel would take all there is, down to other programs' last page.
	more_kib=$(((target - have) * hugepage_kib))
	if ((more_kib > 0 && more_kib + hugepages_leave_kib > $(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo))); then
		return 1
	fi
	if ((have != target)); then
		printf '%s\n' "$target" >"$_hugepages_kernel/nr_hugepages" || return 1
		have=$(<"$_hugepages_kernel/nr_hugepages")
	fi
	if ((have < target)); then
		# Free memory may be there but in pieces: have the kernel put it together, once.
		printf '1\n' >/proc/sys/vm/compact_memory 2>/dev/null || true
		printf '%s\n' "$target" >"$_hugepages_kernel/nr_hugepages" || return 1
		have=$(<"$_hugepages_kernel/nr_hugepages")
	fi
	((have >= target))
}

# Remove the files of SPDK processes that were killed: they hold their hugepages for ever.
hugepages_sweep() {
	local file pid
	for file in "$_hugepages_mount"/spdk_pid*map_*; do
		[[ -e $file ]] || continue
		pid=${file##*/spdk_pid}
		pid=${pid%%map_*}
		[[ $pid =~ ^[0-9]+$ && ! -d /proc/$pid ]] && rm -f "$file"
	done
	return 0
}

# hugepages_reserve MIB: make MIB of hugepages available to this script and what it starts, and
# mount hugetlbfs when it is not. Everything goes back to what it was when the script ends.
hugepages_reserve() {
	local mib=$1 pages nr free state target mounted=no available
	pages=$(((mib * 1024 + hugepage_kib - 1) / hugepage_kib))
	if [[ ! -r $_hugepages_kernel/nr_hugepages ]]; then
		die "this kernel has no 2 MiB hugepages" "run on an x86-64 Linux kernel with CONFIG_HUGETLBFS"
	fi
	if ((EUID != 0)); then
		die "SPDK needs root and $mib MiB of hugepages" "run the same command as root: sudo $0"
	fi
	if ! [[ -w $_hugepages_kernel/nr_hugepages ]] || ! mkdir -p "$_hugepages_ledger" 2>/dev/null; then
		die "this process may not reserve hugepages (in a container: /sys is read-only)" \
			"on the host, as root: echo $pages > $_hugepages_kernel/nr_hugepages; then start the container with --privileged"
	fi
	_hugepages_lock
	nr=$(<"$_hugepages_kernel/nr_hugepages")
	free=$(<"$_hugepages_kernel/free_hugepages")
	_hugepages_sum_claims
	state=$(cat "$_hugepages_ledger/state" 2>/dev/null) || state=
	target=
	[[ -n $state ]] && read -r _ _ target mounted <<<"$state"
	# No ledger, or nobody in it and someone else has changed the count since: take today's as base.
	if [[ -z $state ]] || ((claimed_pages == 0 && nr != target)); then
		printf '%s %s %s %s\n' "$nr" "$free" "$nr" "$mounted" >"$_hugepages_ledger/state"
	fi
	printf '%s\n' "$pages" >"$_hugepages_ledger/claim.$$.$(_process_start $$)"
	_hugepages_unlock
	on_exit hugepages_release
	_hugepages_lock
	if ! _hugepages_apply 2>/dev/null; then
		available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
		_hugepages_unlock
		die "the kernel could not give $mib MiB of hugepages ($((available / 1024)) MiB of memory are available)" \
			"free some memory or end other SPDK programs; after a boot memory is less fragmented. See: grep Huge /proc/meminfo"
	fi
	if ! findmnt --noheadings --types hugetlbfs "$_hugepages_mount" >/dev/null; then
		if ! { mkdir -p "$_hugepages_mount" && mount -t hugetlbfs -o pagesize=2M nodev "$_hugepages_mount"; }; then
			_hugepages_unlock
			die "cannot mount hugetlbfs at $_hugepages_mount" \
				"as root: mkdir -p $_hugepages_mount && mount -t hugetlbfs nodev $_hugepages_mount"
		fi
		read -r nr free target _ <"$_hugepages_ledger/state"
		printf '%s %s %s yes\n' "$nr" "$free" "$target" >"$_hugepages_ledger/state"
	fi
	_hugepages_unlock
	hugepages_sweep
}

# Give this script's pages back; with the last claim also restore the count and the mount.
hugepages_release() {
	local mounted
	[[ -f $_hugepages_ledger/state ]] || return 0
	hugepages_sweep
	_hugepages_lock
	rm -f "$_hugepages_ledger/claim.$$."*
	_hugepages_apply || true
	if ((claimed_pages == 0)); then
		read -r _ _ _ mounted <"$_hugepages_ledger/state"
		# Busy when an SPDK program of someone else uses it: then it stays.
		[[ $mounted == yes ]] && umount "$_hugepages_mount" 2>/dev/null
		rm -f "$_hugepages_ledger/state"
	fi
	_hugepages_unlock
}
