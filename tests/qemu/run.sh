#!/usr/bin/env bash
# presnap on two NVMe controllers of PCIe, and the kernel's own initiator on presnap, in an emulated machine; and what
# is left of a snapshot after a power cut that takes all that was in the store's volatile cache.
#
# Needs no KVM, no root and no NVMe device: QEMU emulates all of it. What happens inside is in guest.sh. Both disks
# write a log of what came to them (QEMU's blklogwrites). The power is cut by killing QEMU; the disks of the second
# boot are made from those logs, up to the last flush (flushed.py).
# Functions are called by name, which shellcheck takes for unreachable code:
# shellcheck disable=SC2317
set -euo pipefail

export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../../scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source-path=SCRIPTDIR source=packages.sh
source "$here/packages.sh"
cd "$here/../.."

# With ten builds beside it a boot takes half of it.
boot_seconds_max=480
guest_mib=1152
hugepages=232

usage() {
	cat <<EOF_USAGE
Usage: tests/qemu/run.sh [OPTION]

Runs presnap in an emulated machine with two NVMe controllers, once up to a power cut and once after it.
The last line is 'N passed, N failed'. Downloads 100 MB of Debian packages, once, and installs nothing.

  --presnap FILE  the program to test (default: built with cargo)
  --keep          keep the folder with images and logs, and say where it is
  --help          this text

Environment:
  PRESNAP_CACHE      the cache folder (default: \$XDG_CACHE_HOME/presnap, else ~/.cache/presnap)
  CARGO_TARGET_DIR   where cargo builds (default: a folder in the cache, per version of Rust)

Status: 0 all passed, 1 something failed, 2 wrong usage, 77 cannot be run here (the last line says why).
EOF_USAGE
}

presnap=
keep=no
while (($# > 0)); do
	case $1 in
	--presnap)
		presnap=${2:-}
		[[ -x $presnap ]] || die "--presnap needs a program, not '$presnap'" "see tests/qemu/run.sh --help" 2
		shift
		;;
	--keep) keep=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	*) die "unknown argument '$1'" "see tests/qemu/run.sh --help" 2 ;;
	esac
	shift
done

passed=0
failed=0

since_start() { minutes "$SECONDS"; }
step() { printf '%s == %s\n' "$(since_start)" "$*"; }
note() { printf '%s    %s\n' "$(since_start)" "$*"; }
ok() {
	passed=$((passed + 1))
	printf '%s    ok: %s\n' "$(since_start)" "$*"
}
bad() {
	failed=$((failed + 1))
	printf '%s    FAILED: %s\n' "$(since_start)" "$*"
}
check() {
	local text=$1
	shift
	if "$@"; then ok "$text"; else bad "$text"; fi
}

# --- what is needed --------------------------------------------------------------------------------

step "packages and program"
if [[ $(uname -m) != x86_64 ]]; then
	echo "skipped: the guest's packages are for x86_64"
	exit 77
fi
if ! qemu_tools "$(cache_dir)/qemu"; then
	echo "skipped: $qemu_tools_why"
	exit 77
fi
if [[ -z $presnap ]]; then
	cargo_target
	# As the tests of stage spdk build it: alone it would have other features of its dependencies, and all built anew.
	cargo test --color never --jobs 2 --no-run --test target || die "the build failed" "look at cargo's messages above"
	presnap=$CARGO_TARGET_DIR/debug/presnap
fi

# Not /tmp, which may be memory.
dir=$(cache_dir)/qemu
# Of runs that were killed.
find "$dir" -mindepth 1 -maxdepth 1 -name 'run.*' -mmin +120 -exec rm -rf {} +
if [[ $keep == yes ]]; then
	dir=$(mktemp -d "$dir/kept.XXXXXX")
	on_exit "log 'images and logs are in $dir'"
else
	dir=$(mktemp -d "$dir/run.XXXXXX")
	on_exit "rm -rf '$dir'"
fi

# --- the guest's files -----------------------------------------------------------------------------

# archive FOLDER: as the kernel wants it for its first root.
archive() { (cd "$1" && find . -print0 | sort -z | "$tools/bin/busybox" cpio -o -0 -H newc 2>/dev/null); }

make_root() {
	local root=$dir/root program file module modules kernel
	mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc/nvme,dev,proc,sys,run,tmp,var/tmp,mnt,root,lib/x86_64-linux-gnu,lib64}
	cp "$tools/bin/busybox" "$root/bin/"
	for program in bash nvme mkfs.ext4 e2fsck; do
		file=$(tool_file "$program")
		cp -L "$file" "$root/sbin/$program"
		libraries_of "$file" >>"$dir/libraries"
	done
	ln -s /sbin/bash "$root/bin/bash"
	# Debug information is four fifths of it.
	strip -o "$root/bin/presnap" "$presnap"
	libraries_of "$presnap" >>"$dir/libraries"
	# Loaded by a running program, and so in no list.
	printf '%s\n' "$tools"/lib/x86_64-linux-gnu/{libgcc_s.so.1,ld-linux-x86-64.so.2} >>"$dir/libraries"
	sort -u "$dir/libraries" | xargs cp -L -t "$root/lib/x86_64-linux-gnu"
	ln -s /lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/lib64/"

	kernel=$(basename "$tools"/lib/modules/*)
	modules=lib/modules/$kernel
	mkdir -p "$root/$modules"
	for module in drivers/uio/uio{,_pci_generic} drivers/nvme/host/nvme-{fabrics,tcp} lib/libcrc32c arch/x86/crypto/crc32c-intel; do
		file=$modules/kernel/$module.ko
		mkdir -p "$root/${file%/*}"
		cp "$tools/$file" "$root/$file"
	done
	cp "$tools/$modules"/modules.{builtin,builtin.modinfo,order} "$root/$modules/"
	tool_command kmod depmod
	"${command[@]}" -b "$root" "$kernel"

	cp tests/qemu/guest.sh "$root/init"
	cp scripts/lib.sh "$root/lib.sh"
	# The addresses that QEMU is told below, and the store's namespace.
	sed -e 's/0000:01:00\.0/0000:00:04.0/; s/0000:02:00\.0/0000:00:05.0/; s/Nvme1n1/Nvme1n2/' configs/nvme.json >"$root/nvme.json"
	grep -q '"Nvme1n2"' "$root/nvme.json"
	archive "$root" >"$dir/root.cpio"
}

# --- the machine -----------------------------------------------------------------------------------

qemu_pid=

stop_qemu() {
	[[ -n $qemu_pid ]] || return 0
	kill -KILL "$qemu_pid" 2>/dev/null || true
	wait "$timeout_pid" 2>/dev/null || true
	qemu_pid=
}
on_exit stop_qemu

has_pid() { [[ -s $dir/qemu.pid ]] || ! kill -0 "$timeout_pid" 2>/dev/null; }

# start_qemu PHASE BLOCKDEV...: blockdevs 'master' and 'store' are the two disks.
start_qemu() {
	local phase=$1 kernel disk disks=()
	shift
	for disk in "$@"; do disks+=(-blockdev "$disk"); done
	kernel=$(echo "$tools"/boot/vmlinuz-*)
	rm -f "$dir"/qemu.pid "$dir"/serial.{in,out}
	mkfifo "$dir"/serial.{in,out}
	# For both, so that this opens at once, and stays open.
	exec {from_guest}<>"$dir/serial.out" {to_guest}<>"$dir/serial.in"
	archive "$dir/kept" | cat "$dir/root.cpio" - >"$dir/$phase.cpio"
	tool_command qemu-system-x86_64
	QEMU_MODULE_DIR=$tools/usr/lib/x86_64-linux-gnu/qemu timeout --foreground --kill-after=5 "$boot_seconds_max" "${command[@]}" \
		-L "$tools/usr/share/seabios" -L "$tools/usr/share/qemu" \
		-nodefaults -no-user-config -display none -no-reboot -pidfile "$dir/qemu.pid" \
		-machine q35 -accel tcg,thread=multi,tb-size=256 -cpu max,la57=off -smp 2 -m "$guest_mib" \
		-kernel "$kernel" -initrd "$dir/$phase.cpio" \
		-append "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off init_on_alloc=0 nokaslr random.trust_cpu=on audit=0 apparmor=0 selinux=0 nowatchdog hugepages=$hugepages presnap.phase=$phase" \
		-serial "file:$dir/$phase.console" -chardev "pipe,id=say,path=$dir/serial" -serial chardev:say \
		"${disks[@]}" \
		-device nvme,id=nvme0,serial=MASTER,addr=04.0 \
		-device nvme-ns,bus=nvme0,nsid=1,drive=master,logical_block_size=4096,physical_block_size=4096 \
		-device nvme,id=nvme1,serial=STORE,addr=05.0 \
		-device "nvme-ns,bus=nvme1,nsid=2,drive=store,logical_block_size=4096,physical_block_size=4096" \
		-D "$dir/$phase.trace" -trace pci_nvme_flush_ns \
		>"$dir/$phase.qemu" 2>&1 </dev/null &
	timeout_pid=$!
	wait_until 20 has_pid || true
	qemu_pid=$(cat "$dir/qemu.pid" 2>/dev/null) || qemu_pid=$timeout_pid
}

qemu_runs() { kill -0 "$timeout_pid" 2>/dev/null; }

# NVMe Flush commands that came to a namespace: the master's is 1, the store's 2.
flushes() { grep -c "pci_nvme_flush_ns nsid 0x$1\$" "$dir/$2.trace" || true; }

# At a mark 'before-NAME' it counts what came to the store, at 'after-NAME' it compares. At 'durable-NAME' nothing
# but the snapshot may have written to the store.
look() {
	local now entries logged unflushed
	now=$(flushes 2 first)
	read -r entries logged unflushed < <(python3 tests/qemu/flushed.py count "$dir/store.log")
	case $1 in
	before-*) flushes_before=$now logged_before=$logged entries_before=$entries ;;
	after-*)
		check "snapshot '${1#after-}': $((now - flushes_before)) NVMe flushes came to the store's controller while it became complete, $((logged - logged_before)) went on to the disk" \
			[ $((now > flushes_before && logged > logged_before)) = 1 ]
		;;
	durable-*)
		check "snapshot '${1#durable-}': of its $((entries - entries_before)) writes and flushes, $unflushed writes are volatile when the reply has come" [ "$unflushed" = 0 ]
		;;
	esac
}

# listen: does what the guest says, until it is done or is gone. Status 1 unless it came to the end of its phase.
listen() {
	local part line='' complete word rest
	while true; do
		if read -r -t 1 -u "$from_guest" part; then complete=yes; else complete=no; fi
		line+=$part
		if [[ $complete == no ]]; then
			qemu_runs || return 1
			continue
		fi
		read -r word rest <<<"$line"
		line=
		case $word in
		step) step "$rest" ;;
		note) note "$rest" ;;
		ok) ok "$rest" ;;
		not) bad "${rest#ok }" ;;
		keep) printf 'kept[%s]=%q\n' "${rest%% *}" "${rest#* }" >>"$dir/kept/kept" ;;
		mark)
			look "$rest"
			printf 'go on\n' >&"$to_guest"
			;;
		cut)
			stop_qemu
			return 0
			;;
		done) return 0 ;;
		*) note "the guest said: $word $rest" ;;
		esac
	done
}

# A phase that did not come to its end, or in which a check failed: the ends of what was written about it.
show_logs() {
	local file
	for file in "$dir/$1".{qemu,console}; do
		printf -- '--- the end of %s\n' "${file##*/}"
		{ tail -n 60 "$file" || true; } 2>&1 | tr -d '\r'
	done
}

# phase NAME: listens to it. Status 1 when it did not come to its end.
phase() {
	local failed_before=$failed status=0
	if ! listen; then
		status=1
		bad "the guest comes to the end of its $1 boot"
	fi
	wait_until 20 qemu_ended || true
	stop_qemu
	if ((failed > failed_before)); then show_logs "$1"; fi
	return "$status"
}

qemu_ended() { ! qemu_runs; }

finish() {
	printf '%d passed, %d failed\n' "$passed" "$failed"
	exit $((failed > 0))
}

# --- the two boots ---------------------------------------------------------------------------------

make_root
mkdir "$dir/kept"
declare -A mib=([master]=24 [store]=512)
for disk in master store; do
	truncate -s "${mib[$disk]}M" "$dir/$disk.img"
	touch "$dir/$disk.log"
	logged_disks+=(
		"driver=file,node-name=$disk-file,filename=$dir/$disk.img"
		"driver=file,node-name=$disk-log,filename=$dir/$disk.log"
		"driver=blklogwrites,node-name=$disk,file=$disk-file,log=$disk-log,log-sector-size=4096"
	)
	flushed_disks+=("driver=file,node-name=$disk,filename=$dir/$disk.flushed.img")
done

step "first boot"
start_qemu first "${logged_disks[@]}"
phase first || finish

step "power cut: both disks lose what was not flushed"
for disk in master store; do
	truncate -s "${mib[$disk]}M" "$dir/$disk.flushed.img"
	read -r entries logged unflushed < <(python3 tests/qemu/flushed.py replay "$dir/$disk.log" "$dir/$disk.flushed.img")
	note "$disk: $entries writes and flushes; of these $logged flushes, and $unflushed writes after the last, which are lost"
done

step "second boot"
start_qemu second "${flushed_disks[@]}"
phase second || true
finish
