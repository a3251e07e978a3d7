#!/usr/bin/env bash
# Shows presnap at work on this machine: a real target, a real load over NVMe/TCP, snapshots under that load,
# every byte of them read back over NVMe/TCP and checked. Leaves nothing behind.
#
# The volume, 128 MiB in memory:
#   0 to 32 MiB     written once before the load, never again
#   32 to 48 MiB    the journal: one write at a time, in order, round and round. A snapshot must hold the
#                   journal up to exactly one entry, and nothing after it
#   48 to 64 MiB    hot: random 4 KiB writes, 16 at a time
#   64 to 128 MiB   log: 64 KiB writes in order at 6 MB/s
# Each 4 KiB carries its place and a checksum (fio's verify): a torn or misplaced block would show.
set -euo pipefail

export LC_ALL=C
scripts_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$scripts_dir/lib.sh"
cd "$scripts_dir/.."

target_mib=768
# fio, or what reads an export: one beside the target at a time.
initiator_mib=384
load_seconds=20
nqn=nqn.2016-06.io.spdk:presnap:vol0

usage() {
	cat <<EOF
Usage: scripts/demo.sh [OPTION]

Sets everything up, builds presnap, starts it with a volume in memory and a store in a file, and puts a load
on the volume with fio over NVMe/TCP. Takes three snapshots under load and one at rest, exports them, reads
them back, checks every byte, and prints what happened. Needs root and $((target_mib + initiator_mib)) MiB for hugepages.
Everything is stopped and removed at the end.

  --keep    let the target go on until Ctrl-C, and say how to play with it
  --help    this text

Environment:
  PRESNAP_CACHE      the cache folder (default: \$XDG_CACHE_HOME/presnap, else ~/.cache/presnap)
  SPDK_DIR           a built SPDK tree to use, instead of the one that scripts/setup.sh builds

Examples:
  scripts/demo.sh           as root
  scripts/demo.sh --keep    and then, in another terminal: presnap snapshot create vol0 mine

Status: 0 all bytes were right, 1 something failed, 2 wrong usage.
EOF
}

keep=no
while (($# > 0)); do
	case $1 in
	--keep) keep=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	*) die "unknown argument '$1'" "see scripts/demo.sh --help" 2 ;;
	esac
	shift
done

((EUID == 0)) || die "SPDK needs root: hugepages, and memory at known addresses" "run the same command as root: sudo $0"

step() { printf '\n== %s\n' "$*"; }
ok() { printf '   ok: %s\n' "$*"; }

# --- setup and build -------------------------------------------------------------------------------

step "Setup and build"
scripts/setup.sh
# Before the build, so that a machine that cannot give the memory says so at once.
hugepages_reserve $((target_mib + initiator_mib))
cargo_target
# A release build: the dependencies take minutes once, and what is shown below is the speed that users get.
log "building presnap; cargo says how far it is"
cargo build --release --jobs 2 --bin presnap || die "the build failed" "look at cargo's messages above"
presnap=$CARGO_TARGET_DIR/release/presnap

# --- target ----------------------------------------------------------------------------------------

# Not /tmp, which may be memory: a store's file is opened for direct I/O.
mkdir -p "$(cache_dir)/demo"
dir=$(mktemp -d "$(cache_dir)/demo/XXXXXX")
socket=$dir/presnap.sock
((${#socket} < 108)) || die "the path of the cache folder is too long for a socket: $dir" "set PRESNAP_CACHE to a shorter one"
target_pid=

stop_target() {
	[[ -n $target_pid ]] || return 0
	kill -TERM "$target_pid" 2>/dev/null || true
	wait_until 30 stopped || kill -KILL "$target_pid" 2>/dev/null || true
	wait "$target_pid" 2>/dev/null || true
}

stop_load() {
	[[ -z ${load_pid:-} ]] || kill -TERM "$load_pid" 2>/dev/null || true
}

stopped() { ! kill -0 "$target_pid" 2>/dev/null; }

on_exit "rm -rf '$dir'"
on_exit stop_target
on_exit stop_load

p() { "$presnap" --socket "$socket" "$@"; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

port=4420
until port_is_free "$port"; do port=$((port + 1)); done

step "Start the target: memory as master, a file as store, the volume over NVMe/TCP on 127.0.0.1:$port"
truncate -s 1G "$dir/store.img"
sed -e "s|/tmp/presnap-demo/store.img|$dir/store.img|" -e "s|\"4420\"|\"$port\"|" configs/demo.json >"$dir/demo.json"
answers() { stopped || p rpc spdk_get_version >/dev/null 2>&1; }
"$presnap" --socket "$socket" serve --no-pci --num-trace-entries 0 --cores 0x1 --memory-mib "$target_mib" --config "$dir/demo.json" \
	>"$dir/target.log" 2>&1 </dev/null &
target_pid=$!
if ! wait_until 60 answers || stopped; then
	tail -n 20 "$dir/target.log" >&2
	die "the target did not start" "its messages are above"
fi
p volume list

# --- initiator -------------------------------------------------------------------------------------

spdk=$(spdk_dir)
plugin=$spdk/build/fio/spdk_bdev
[[ -s $plugin ]] || die "$spdk has no fio plugin" "configure SPDK with --with-fio=<fio source>, or unset SPDK_DIR"

# attach FILE NQN PORT: a configuration for SPDK's initiator, whose bdev is then Remote0n1.
attach() {
	printf '{"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_nvme_attach_controller", "params":
		{"name": "Remote0", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "%s", "subnqn": "%s"}}]}]}\n' \
		"$3" "$2" >"$1"
}

# The other core, where there is one.
fio_cpu=$(($(nproc) > 1 ? 1 : 0))

# fio_on CONFIG ARGUMENT...: fio through SPDK's initiator.
fio_on() {
	local config=$1
	shift
	(cd "$dir" && exec taskset -c "$fio_cpu" env LD_PRELOAD="$plugin" fio --ioengine=spdk_bdev --spdk_json_conf="$config" \
		--spdk_mem="$initiator_mib" --thread=1 --filename=Remote0n1 --direct=1 --verify=crc32c --verify_interval=4k \
		--verify_state_save=0 --randrepeat=0 "$@")
}

# logged COMMAND...: what it says goes to a log, which is shown if it fails.
logged() {
	if ! "$@" >"$dir/initiator.log" 2>&1; then
		tail -n 25 "$dir/initiator.log" >&2
		die "the initiator failed: $*" "its messages are above; the target's are in $dir/target.log"
	fi
}

# dump CONFIG FILE: all of a namespace to a file, over NVMe/TCP.
dump() {
	logged taskset -c "$fio_cpu" "$spdk/build/bin/spdk_dd" --json "$1" --no-pci --cpumask "$((1 << fio_cpu))" \
		--mem-size "$initiator_mib" --rpc-socket "$dir/dd.sock" --ib Remote0n1 --of "$2" --bs 131072 --qd 8 --aio
}

volume=$dir/volume.json
attach "$volume" "$nqn" "$port"

step "Fill the volume, 128 MiB, over NVMe/TCP"
logged fio_on "$volume" --name=fill --rw=write --bs=64k --iodepth=8 --size=128m --do_verify=0
dump "$volume" "$dir/filled.img"
ok "filled; each 4 KiB has its place and a checksum in it"

# --- snapshots under load --------------------------------------------------------------------------

step "Load for $load_seconds s over NVMe/TCP, and three snapshots in it"
timed=(--time_based --runtime="$load_seconds" --do_verify=0)
timed+=(--write_lat_log=load --log_unix_epoch=1 --per_job_logs=1 --disable_clat=1 --disable_slat=1)
fio_on "$volume" "${timed[@]}" \
	--name=journal --rw=write --bs=4k --iodepth=1 --offset=32m --size=16m --rate_iops=1000 \
	--name=hot --rw=randwrite --bs=4k --iodepth=16 --offset=48m --size=16m --rate_iops=3000 \
	--name=log --rw=write --bs=64k --iodepth=4 --offset=64m --size=64m --rate=6m >"$dir/load.log" 2>&1 &
load_pid=$!

now_ms() { date +%s%3N; }

load_writes() { p stats vol0 --json | python3 scripts/demo_report.py writes; }
writes_before=$(load_writes)
load_is_on() { ! kill -0 "$load_pid" 2>/dev/null || (($(load_writes) > writes_before + 100)); }
wait_until 30 load_is_on || true
kill -0 "$load_pid" 2>/dev/null || { tail -n 25 "$dir/load.log" >&2; die "the load did not start" "fio's messages are above"; }
sleep 4
for name in first second third; do
	asked=$(now_ms)
	p snapshot create vol0 "$name" --json >"$dir/$name.json"
	printf '%s %s %s\n' "$name" "$asked" "$(now_ms)" >>"$dir/windows"
	ok "snapshot '$name' complete"
	sleep 3
done
if ! wait "$load_pid"; then
	tail -n 25 "$dir/load.log" >&2
	die "the load failed" "fio's messages are above"
fi
load_pid=
ok "load ended: no write failed"

step "One more snapshot, at rest, and all of the volume beside it"
p snapshot create vol0 rest --json >"$dir/rest.json"
dump "$volume" "$dir/volume.img"
cmp "$dir/volume.img" "$dir/filled.img" >/dev/null && die "the load has changed nothing" "look at $dir/load.log"
ok "both read"

# --- read back -------------------------------------------------------------------------------------

# read_back NAME FILE: export, every block through fio's verify, then all bytes to FILE.
read_back() {
	local name=$1 file=$2 config=$dir/export-$1.json
	p snapshot export vol0 "$name" --trsvcid "$port" --allow-any-host --json >"$dir/exported"
	attach "$config" "$(python3 scripts/demo_report.py nqn "$dir/exported")" "$port"
	logged fio_on "$config" --name=verify --rw=read --bs=64k --iodepth=8 --size=128m
	dump "$config" "$file"
}

step "Export the snapshots, and read every byte of them over NVMe/TCP"
before=$((32 << 20))
for name in first second third rest; do
	read_back "$name" "$dir/$name.img"
	cmp --bytes="$before" "$dir/$name.img" "$dir/filled.img" ||
		die "snapshot '$name' differs where nothing was written" "this is a bug: please report it with $dir"
	journal=$(python3 scripts/demo_report.py journal "$dir/$name.img" "$dir/filled.img") || die "snapshot '$name': $journal" "this is a bug"
	ok "$name: 32768 of 32768 blocks whole and in place; untouched 32 MiB as before; $journal"
done
cmp "$dir/rest.img" "$dir/volume.img" || die "snapshot 'rest' is not the volume" "this is a bug"
ok "rest: all 134217728 bytes are those of the volume"

step "Overwrite all of the volume; the snapshots must not care"
logged fio_on "$volume" --name=overwrite --rw=write --bs=64k --iodepth=8 --size=128m --do_verify=0
for name in first second third rest; do
	dump "$dir/export-$name.json" "$dir/again.img"
	cmp "$dir/$name.img" "$dir/again.img" || die "snapshot '$name' has changed" "this is a bug"
	ok "$name: the same 134217728 bytes as before"
done
if fio_on "$dir/export-rest.json" --name=refused --rw=write --bs=4k --size=4k --do_verify=0 >"$dir/refused.log" 2>&1; then
	die "a write to a snapshot was not refused" "this is a bug"
fi
grep -q 'io_u error.*: write offset=0' "$dir/refused.log" || die "fio did not come to write" "this is a bug"
ok "a write to an export is refused"

step "What happened"
python3 scripts/demo_report.py table "$dir"
if [[ $keep == yes ]]; then
	step "The target goes on"
	cat <<EOF
   In another terminal:

     alias presnap='$presnap --socket $socket'
     presnap snapshot list vol0
     presnap snapshot create vol0 mine
     presnap stats vol0

   Ctrl-C here stops it and removes its files.
EOF
	wait "$target_pid" || die "the target ended by itself" "see $dir/target.log"
	exit 0
fi

step "Stop the target"
kill -TERM "$target_pid"
wait_until 30 stopped || die "the target did not stop within 30 s" "see $dir/target.log"
wait "$target_pid" || die "the target did not stop cleanly" "see $dir/target.log"
target_pid=
ok "stopped cleanly; files and hugepages are given back"
