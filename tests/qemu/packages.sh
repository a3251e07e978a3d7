# shellcheck shell=bash
# What is set here is read by who sources this:
# shellcheck disable=SC2034
# The guest's programs and kernel, and QEMU: Debian packages, unpacked into the cache and not installed.
#
#   qemu_tools DIR      makes sure that they are in DIR/<key>, and sets tools to that folder
#   tool_command NAME   sets command to what runs one of these programs here
#   tool_file NAME      its file
#   libraries_of FILE   the shared libraries that FILE needs, as paths
#
# apt resolves the list as for a machine on which nothing is installed, so that what it downloads is complete: the
# C library and its loader come along, and nothing depends on what is installed here. Sourced after scripts/lib.sh.

packages_qemu=(
	qemu-system-x86                                 # the machine
	linux-image-cloud-amd64                         # its kernel; NVMe and ext4 are built in
	busybox-static bash kmod nvme-cli e2fsprogs     # what the test runs in it
	libnuma1 liburing2 libuuid1 libaio1 libgcc-s1   # what presnap is linked with
)

# Of an unpacked package, what is of no use here.
packages_qemu_drop=(usr/share/{doc,man,info,locale,bash-completion,perl,iso-codes,xml,zoneinfo} usr/lib/x86_64-linux-gnu/{perl,gstreamer-1.0} usr/sbin/*.perl)

_apt_install() {
	apt-get -q --yes --no-install-recommends --download-only \
		-o Dir::State::status=/dev/null -o Dir::Cache="$1/cache" -o Dir::Cache::archives="$1/archives" \
		-o Acquire::Retries=3 -o Acquire::AllowInsecureRepositories=false -o APT::Get::AllowUnauthenticated=false \
		-o APT::Sandbox::User="$(id -un)" install "${packages_qemu[@]}"
}

# Status 1 when they cannot be had here; why is in qemu_tools_why.
qemu_tools() {
	local dir=$1 key status=0
	qemu_tools_why=
	key=$({
		declare -p packages_qemu packages_qemu_drop
		declare -f _apt_install _unpack
	} | sha256sum | cut -c 1-16)
	tools=$dir/tools-$key
	mkdir -p "$dir"
	lock_file "$dir/lock" 900
	[[ -e $tools/packages ]] || _fetch_tools "$dir" || status=1
	# shellcheck disable=SC2154  # set by lock_file
	exec {lock_fd}>&-
	return "$status"
}

_fetch_tools() {
	local dir=$1 program fresh=$1/fresh
	for program in apt-get dpkg-deb; do
		command -v "$program" >/dev/null && continue
		qemu_tools_why="the packages are Debian's, and there is no $program here"
		return 1
	done
	log "downloading QEMU, a kernel and the guest's programs (100 MB, once)"
	rm -rf "$fresh"
	mkdir -p "$fresh"/{archives/partial,cache,root}
	if ! _download "$fresh" >"$dir/apt.log" 2>&1; then
		qemu_tools_why="apt could not get the packages: $(sed -n 's/^E: //p' "$dir/apt.log" | tail -n 1) (all it said: $dir/apt.log)"
		rm -rf "$fresh"
		return 1
	fi
	_unpack "$fresh" || return 1
	find "$dir" -mindepth 1 -maxdepth 1 -type d -name 'tools-*' -exec rm -rf {} +
	mv "$fresh/root" "$tools"
	rm -rf "$fresh"
}

_download() {
	_apt_install "$1" && return 0
	# Lists that are empty name nothing, and some weeks old ones versions that are gone.
	((EUID == 0)) && apt-get -q -o DPkg::Lock::Timeout=300 update && _apt_install "$1"
}

# What came of which version is noted last.
_unpack() {
	local deb
	for deb in "$1"/archives/*.deb; do
		dpkg-deb --extract "$deb" "$1/root" || return 1
	done
	(cd "$1/root" && rm -rf "${packages_qemu_drop[@]}")
	(cd "$1/archives" && printf '%s\n' *.deb) >"$1/root/packages"
}

# The loader that came along: this machine's may be of another version than the libraries. Not by its link, which
# leads to this machine's.
_loader() {
	local libraries=lib/x86_64-linux-gnu
	loader=("$tools/$libraries/ld-linux-x86-64.so.2" --library-path "$tools/$libraries:$tools/usr/$libraries")
}

# tool_command NAME [AS]: sets command to what runs the program here, under the name AS.
tool_command() {
	local file loader
	_loader
	file=$(tool_file "$1")
	command=("${loader[@]}" --argv0 "${2:-$1}" "$file")
}

tool_file() {
	local file
	for file in "$tools"/{usr/,}{bin,sbin}/"$1"; do
		[[ ! -x $file ]] || break
	done
	printf '%s\n' "$file"
}

libraries_of() {
	local loader
	_loader
	"${loader[@]}" --list "$1" | awk '
		/not found/ { print "no library: " $0 >"/dev/stderr"; bad = 1 }
		$2 == "=>" && $1 !~ /ld-linux/ { print $3 }
		END { exit bad }'
}
