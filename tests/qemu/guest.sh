#!/bin/bash
# The first process of the guest: it drives presnap on two NVMe controllers, and the kernel's initiator on presnap.
# run.sh makes the guest, and reads what this says on the second serial line, one message a line:
#
#   step TEXT, note TEXT     what comes, and what was seen
#   ok TEXT, not ok TEXT     a check
#   keep NAME VALUE          for the next boot, where it is ${kept[NAME]}
#   mark NAME                the host looks at what came to the store now; it answers with a line
#   cut                      the host takes the power away now
#   done                     all of this boot was done
#
# The first serial line is the console; what programs said is there.
set -uo pipefail

# shellcheck source-path=SCRIPTDIR/../../scripts source=lib.sh
source /lib.sh

master_address=0000:00:04.0
store_address=0000:00:05.0
# Not 1, so that what is sent to it can be told from what is sent to the master's.
store_nsid=2
volume_nqn=nqn.2016-06.io.spdk:presnap:vol0
memory_mib=448
declare -A kept=()

say() { printf '%s\n' "$*" >&3; }
step() { say "step $*"; }
note() { say "note $*"; }

# check TEXT COMMAND...
check() {
	local text=$1
	shift
	if "$@"; then say "ok $text"; else say "not ok $text"; fi
}

# need TEXT COMMAND...: without it nothing of the rest means anything.
need() {
	local text=$1
	shift
	"$@" || stop "$text"
}

stop() {
	say "not ok $*"
	for log in /run/*.log; do
		printf -- '--- the end of %s\n' "$log"
		tail -n 25 "$log"
	done
	dmesg | tail -n 20
	power_off
}

power_off() {
	sync
	# What was said must leave the machine first.
	exec 3>&-
	poweroff -f
	wait_until 60 false
}

refused() { ! "$@"; }

# mark NAME: waits until the host has looked.
mark() {
	say "mark $1"
	read -r -t 60 <&4 || stop "the host did not answer at mark $1"
}

# --- the machine -----------------------------------------------------------------------------------

boot() {
	export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
	/bin/busybox --install -s /bin
	mount -t proc proc /proc
	mount -t sysfs sys /sys
	mount -t devtmpfs dev /dev
	mkdir -p /dev/shm /dev/hugepages /mnt/volume /mnt/snapshot
	mount -t tmpfs shm /dev/shm
	mount -t tmpfs run /run
	mount -t tmpfs tmp /tmp
	mount -t hugetlbfs none /dev/hugepages
	ln -s /proc/self/fd /dev/fd
	ip link set lo up
	ulimit -l unlimited
	stty -F /dev/ttyS1 raw -echo
	exec 3>/dev/ttyS1 4</dev/ttyS1
	# shellcheck source=/dev/null
	if [[ -e /kept ]]; then source /kept; fi
}

# Takes both controllers from the kernel's driver.
take_controllers() {
	local address
	modprobe uio_pci_generic || return 1
	for address in "$master_address" "$store_address"; do
		printf 'uio_pci_generic\n' >"/sys/bus/pci/devices/$address/driver_override"
		if [[ -e /sys/bus/pci/devices/$address/driver ]]; then
			printf '%s\n' "$address" >"/sys/bus/pci/devices/$address/driver/unbind"
		fi
		printf '%s\n' "$address" >/sys/bus/pci/drivers_probe
		[[ $(readlink "/sys/bus/pci/devices/$address/driver") == */uio_pci_generic ]] || return 1
	done
	for address in /sys/class/nvme/nvme*; do
		[[ ! -e $address ]] || return 1
	done
}

# --- presnap ---------------------------------------------------------------------------------------

target_pid=

target_answers() { presnap rpc spdk_get_version >/dev/null 2>&1; }
target_answers_or_ended() { target_ended || target_answers; }
target_ended() { ! kill -0 "$target_pid" 2>/dev/null; }

# start_target ARG...
start_target() {
	presnap serve --cores 0x1 --memory-mib "$memory_mib" --num-trace-entries 0 "$@" >>/run/target.log 2>&1 &
	target_pid=$!
	wait_until 60 target_answers_or_ended && ! target_ended
}

stop_target() {
	kill -TERM "$target_pid"
	wait_until 60 target_ended || return 1
	wait "$target_pid" || return 1

}

# snapshot_is NAME STATE
snapshot_is() { presnap snapshot list vol0 "$1" --json | grep -q "\"state\": *\"$2\""; }

say_snapshot() { presnap snapshot list vol0 | while read -r line; do note "  $line"; done; }

# --- the kernel's initiator ------------------------------------------------------------------------

# device_of NQN: the block device of its namespace.
device_of() {
	local dir
	for dir in /sys/block/nvme*n*; do
		if [[ $(cat "$dir/device/subsysnqn" 2>/dev/null) == "$1" && -b /dev/${dir##*/} ]]; then
			printf '/dev/%s\n' "${dir##*/}"
			return
		fi
	done
	return 1
}

# attach NQN: connects, and sets device.
attach() {
	nvme connect -t tcp -a 127.0.0.1 -s 4420 -n "$1" -q nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001 \
		>>/run/initiator.log 2>&1 || return 1
	wait_until 20 device_of "$1" >/dev/null || return 1
	device=$(device_of "$1")
}

detach() { nvme disconnect -n "$1" >>/run/initiator.log 2>&1; }

# attach_snapshot NAME: exports and connects it, and sets device and nqn.
attach_snapshot() {
	nqn=$(presnap snapshot export vol0 "$1" --allow-any-host --json | sed -n 's/.*"nqn": *"\([^"]*\)".*/\1/p')
	[[ -n $nqn ]] && attach "$nqn"
}

# Past the page cache.
sum_of_device() { dd if="$1" bs=1M iflag=direct 2>/dev/null | md5sum | cut -d ' ' -f 1; }

write_protected() { nvme id-ns "$1" | grep -q '^nsattr[[:space:]]*: *\(0x\)\?1$'; }

# --- files -----------------------------------------------------------------------------------------

# File number N is different at each version V.
content() {
	printf 'file %d version %d\n' "$1" "$2"
	dd if=/run/seed bs=4k skip=$(($1 * 7 + $2)) count=$(($1 % 12 + 4)) 2>/dev/null
}

# Writes files one after another, each durable before the next one: first its number to 'started', then the
# file, then its sum to 'acknowledged'.
writer() {
	local n=0 sum
	while [[ ! -e /run/writer.stop ]]; do
		printf '%d\n' "$n" >>/run/started
		content "$n" 1 >/run/next
		sum=$(md5sum </run/next)
		dd if=/run/next of=/mnt/volume/written/$n bs=64k conv=fsync 2>>/run/writer.log || return 1
		printf '%s  written/%d\n' "${sum%% *}" "$n" >>/run/acknowledged
		n=$((n + 1))
	done
}

writer_pid=

start_writer() {
	rm -f /run/writer.stop /run/started /run/acknowledged
	touch /run/started /run/acknowledged
	mkdir -p /mnt/volume/written && sync
	writer &
	writer_pid=$!
}

stop_writer() {
	touch /run/writer.stop
	wait "$writer_pid"
}

# has_written N: as many files were acknowledged.
acknowledged() { wc -l </run/acknowledged; }
has_written() { (($(acknowledged) >= $1)); }
writes_more() { wait_until 60 has_written $(($(acknowledged) + $1)); }

# same_files DIR SUMS
same_files() { (cd "$1" && md5sum -s -c "$2" >>/run/files.log 2>&1); }

# count_same DIR SUMS
count_same() { (cd "$1" && md5sum -c "$2" 2>/dev/null | grep -c ': OK$'); }

# none_since DIR FROM: none of the files that were begun from number FROM on.
none_since() {
	local n=$2
	while [[ $n -lt $(($2 + 5)) ]]; do
		[[ ! -e $1/written/$n ]] || return 1
		n=$((n + 1))
	done
}

# --- first boot ------------------------------------------------------------------------------------

phase_first() {
	local n

	step "format the store, on a target without a configuration"
	need "both controllers are taken from the kernel" take_controllers
	need "the target starts" start_target
	presnap rpc bdev_nvme_attach_controller "{\"name\": \"Nvme1\", \"trtype\": \"PCIe\", \"traddr\": \"$store_address\"}" >/dev/null
	need "the store is formatted" presnap store create store0 "Nvme1n$store_nsid"
	check "a target without a volume stops cleanly" stop_target

	step "start with configs/nvme.json, and connect the kernel's initiator"
	need "the target starts with configs/nvme.json" start_target --config /nvme.json
	say "ok the target starts with configs/nvme.json, its addresses adapted"
	modprobe nvme-tcp
	need "the kernel connects to the volume" attach "$volume_nqn"
	volume=$device
	check "the volume says that it can be written" refused write_protected "$volume"
	note "the kernel takes it for a disk with a cache: $(cat "/sys/block/${volume##*/}/queue/write_cache"), FUA $(cat "/sys/block/${volume##*/}/queue/fua")"

	step "a filesystem, and files in it"
	dd if=/dev/urandom of=/run/seed bs=1M count=4 2>/dev/null
	need "mkfs.ext4" mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 "$volume"
	need "mount" mount "$volume" /mnt/volume
	mkdir /mnt/volume/{old,written}
	for ((n = 0; n < 60; n++)); do content "$n" 0 >/mnt/volume/old/$n; done
	(cd /mnt/volume && md5sum old/*) >/run/old.sums
	sync
	say "ok mkfs.ext4 and 60 files on the volume, through the kernel"

	step "snapshot 'frozen', with fsfreeze, while files are written"
	start_writer
	writes_more 5 || stop "the writer does not write"
	mark before-frozen
	fsfreeze --freeze /mnt/volume
	cat /run/old.sums /run/acknowledged >/run/frozen.sums
	frozen_sum=$(sum_of_device "$volume")
	need "snapshot 'frozen' is readable" presnap snapshot create vol0 frozen --wait consistent
	fsfreeze --unfreeze /mnt/volume
	frozen_next=$(wc -l </run/started)
	wait_until 60 snapshot_is frozen complete || stop "snapshot 'frozen' does not become complete"
	mark after-frozen

	step "snapshot 'crash', without a freeze, while files are written"
	writes_more 5 || stop "the writer does not write after a snapshot"
	mark before-crash
	cat /run/old.sums /run/acknowledged >/run/crash.sums
	need "snapshot 'crash' is complete" presnap snapshot create vol0 crash
	crash_next=$(wc -l </run/started)
	mark after-crash
	writes_more 5 || stop "the writer does not write after a snapshot"
	check "the writer had no error" stop_writer
	say_snapshot

	step "change the volume: each file is written over, or removed"
	for ((n = 0; n < 60; n++)); do
		if ((n % 3 == 0)); then rm /mnt/volume/old/$n; else content "$n" 2 >/mnt/volume/old/$n; fi
	done
	rm /mnt/volume/written/?
	sync
	check "files on the volume are not those of the snapshots any more" refused same_files /mnt/volume /run/frozen.sums

	step "read 'frozen' through the kernel"
	need "snapshot 'frozen' is exported and connected" attach_snapshot frozen
	frozen=$device frozen_nqn=$nqn
	check "nvme id-ns: the namespace says that it is write-protected" write_protected "$frozen"
	check "the kernel takes it for read-only" [ "$(cat "/sys/block/${frozen##*/}/ro")" = 1 ]
	check "every byte is that of the volume while it was frozen" [ "$(sum_of_device "$frozen")" = "$frozen_sum" ]
	check "mount -o ro: what was frozen mounts without further options" mount -o ro "$frozen" /mnt/snapshot
	check "$(wc -l </run/frozen.sums) of $(wc -l </run/frozen.sums) files have their checksums" same_files /mnt/snapshot /run/frozen.sums
	check "no file is there that was begun after the thaw" none_since /mnt/snapshot "$frozen_next"
	umount /mnt/snapshot
	check "e2fsck finds nothing" e2fsck -fn "$frozen"

	step "a write to the snapshot"
	check "the kernel refuses to write" refused dd if=/run/seed of="$frozen" bs=4k count=1 conv=notrunc
	nvme write "$frozen" --start-block=0 --block-count=0 --data-size=4096 --data=/run/seed >/run/write.log 2>&1
	note "a write command past the kernel: $(grep -i status /run/write.log | head -n 1)"
	check "the target refuses to write, as write-protected" grep -qi 'write protected' /run/write.log

	step "read 'crash' through the kernel"
	need "snapshot 'crash' is exported and connected" attach_snapshot crash
	crash=$device crash_nqn=$nqn
	check "nvme id-ns: the namespace says that it is write-protected" write_protected "$crash"
	crash_sum=$(sum_of_device "$crash")
	check "mount -o ro: refused, for the journal cannot be replayed" refused mount -o ro "$crash" /mnt/snapshot
	note "$(dmesg | grep -i 'ext4.*write access unavailable' | tail -n 1)"
	check "mount -o ro,noload: mounts" mount -o ro,noload "$crash" /mnt/snapshot
	check "files that had been at rest have their checksums" same_files /mnt/snapshot /run/old.sums
	note "with noload $(count_same /mnt/snapshot /run/crash.sums) of $(wc -l </run/crash.sums) files that were durable before the request are right: what only the journal has is missing"
	umount /mnt/snapshot

	step "restore 'crash': to a file, and to the volume"
	dd if="$crash" of=/tmp/copy bs=1M iflag=direct 2>/dev/null
	check "the copy in a file has the same bytes" [ "$(md5sum </tmp/copy)" = "$crash_sum  -" ]
	umount /mnt/volume
	dd if=/tmp/copy of="$volume" bs=1M oflag=direct conv=fsync 2>/dev/null
	rm /tmp/copy
	check "the volume has the same bytes" [ "$(sum_of_device "$volume")" = "$crash_sum" ]
	check "the volume mounts, and its journal is replayed" mount "$volume" /mnt/volume
	check "$(wc -l </run/crash.sums) of $(wc -l </run/crash.sums) files that were durable before the request have their checksums" \
		same_files /mnt/volume /run/crash.sums
	check "no file is there that was begun after the reply" none_since /mnt/volume "$crash_next"
	umount /mnt/volume
	check "e2fsck finds nothing" e2fsck -fn "$volume"
	check "'frozen' is as it was" [ "$(sum_of_device "$frozen")" = "$frozen_sum" ]
	check "'crash' is as it was" [ "$(sum_of_device "$crash")" = "$crash_sum" ]

	step "a snapshot, and then one that is under way when the power goes"
	need "mount" mount "$volume" /mnt/volume
	start_writer
	writes_more 3 || stop "the writer does not write"
	# Nothing but the snapshot writes to the store now.
	presnap policy vol0 --policy off >/dev/null
	mark before-last
	need "snapshot 'last' is complete" presnap snapshot create vol0 last
	mark after-last
	mark durable-last
	need "snapshot 'last' is exported and connected" attach_snapshot last
	last_sum=$(sum_of_device "$device")
	presnap policy vol0 --policy idle --copy-mbytes-per-sec 0 >/dev/null
	say "keep config $(presnap rpc save_config | tr -d '\n')"
	presnap policy vol0 --policy off --copy-mbytes-per-sec 1 >/dev/null
	say "keep frozen $frozen_sum $frozen_nqn"
	say "keep crash $crash_sum $crash_nqn"
	say "keep last $last_sum $nqn"
	# More than is copied before the power goes.
	dd if=/dev/urandom of=/mnt/volume/big bs=1M count=8 conv=fsync 2>/dev/null
	need "snapshot 'never' is readable" presnap snapshot create vol0 never --wait consistent
	writes_more 3 || stop "the writer does not write"
	check "the power goes while snapshot 'never' is under way, and files are written" snapshot_is never completing
	cp /run/acknowledged /run/flushed
	check "the kernel's flush of the volume succeeds" nvme flush "$volume"
	say "keep flushed $(tr '\n' ';' </run/flushed)"
	say "keep acknowledged $(tr '\n' ';' </run/acknowledged)"
	say cut
	wait_until 60 false
}

# --- after the power cut ---------------------------------------------------------------------------

phase_second() {
	local name sum

	step "start again with the saved configuration"
	printf '%s\n' "${kept[config]}" >/run/saved.json
	need "both controllers are taken from the kernel" take_controllers
	need "the target starts" start_target --config /run/saved.json
	say "ok the target starts with what save_config had given"
	wait_until 30 snapshot_is last complete
	say_snapshot
	check "the snapshot that was under way has failed" snapshot_is never failed
	modprobe nvme-tcp

	step "the snapshots from before the cut"
	for name in frozen crash last; do
		read -r sum nqn <<<"${kept[$name]}"
		check "'$name' is complete" snapshot_is "$name" complete
		if attach "$nqn"; then
			check "'$name' is there under its old NQN, and every byte is as before" [ "$(sum_of_device "$device")" = "$sum" ]
		else
			say "not ok '$name' can be connected under its old NQN"
		fi
	done

	step "the volume, and the next snapshot"
	need "the kernel connects to the volume" attach "$volume_nqn"
	volume=$device
	check "the volume mounts, and its journal is replayed" mount "$volume" /mnt/volume
	tr ';' '\n' <<<"${kept[flushed]}" | grep . >/run/flushed
	tr ';' '\n' <<<"${kept[acknowledged]}" | grep . >/run/acknowledged
	check "$(wc -l </run/flushed) of $(wc -l </run/flushed) files that were written before a flush have their checksums" same_files /mnt/volume /run/flushed
	# An fsync ends with a write that asks to be durable by itself (FUA), which SPDK 20.07 does not hear.
	note "and $(($(count_same /mnt/volume /run/acknowledged) - $(wc -l </run/flushed))) of $(($(wc -l </run/acknowledged) - $(wc -l </run/flushed))) that were written after it"
	fsfreeze --freeze /mnt/volume
	sum=$(sum_of_device "$volume")
	need "the next snapshot is complete" presnap snapshot create vol0 next
	fsfreeze --unfreeze /mnt/volume
	say_snapshot
	need "the next snapshot is exported and connected" attach_snapshot next
	check "every byte of it is that of the volume" [ "$(sum_of_device "$device")" = "$sum" ]
	umount /mnt/volume
	check "e2fsck of the volume finds nothing" e2fsck -fn "$volume"
	detach "$volume_nqn"
	check "the target stops cleanly" stop_target
}

boot
phase=$(sed -n 's/.*presnap\.phase=\([a-z]*\).*/\1/p' /proc/cmdline)
say "step up after $(cut -d ' ' -f 1 /proc/uptime) s"
"phase_$phase"
say "done"
power_off
