#!/usr/bin/env bash
# Runs the fuzz targets in fuzz/ for a while each, from the inputs in fuzz/corpus.
set -euo pipefail

scripts_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$scripts_dir/lib.sh"
cd "$scripts_dir/.."

targets=(store catalog rpc trace model)
seconds=300
chosen=()

usage() {
	cat <<END
Usage: scripts/fuzz.sh [OPTION] [TARGET...]

Runs libFuzzer on what reads bytes that others wrote: ${targets[*]}.
Needs a C++ compiler, but neither SPDK nor root nor a nightly Rust.

  --seconds N    for each target (default: $seconds)
  --list         list the targets
  --help         this text

What is found is in <cache>/fuzz/TARGET, one file for each crash, with the command that runs it again. Inputs that are worth
keeping go to fuzz/corpus/TARGET, where tests/hostile_input.rs runs them each time.

Status: 0 nothing found, 1 something found, 2 wrong usage.
END
}

while (($# > 0)); do
	case $1 in
	--seconds)
		[[ ${2:-} =~ ^[0-9]+$ ]] || die "--seconds needs a number" "such as --seconds 60" 2
		seconds=$2
		shift
		;;
	--list)
		printf '%s\n' "${targets[@]}"
		exit 0
		;;
	-h | --help)
		usage
		exit 0
		;;
	-*) die "unknown option '$1'" "see scripts/fuzz.sh --help" 2 ;;
	*)
		[[ " ${targets[*]} " == *" $1 "* ]] || die "unknown target '$1'" "see scripts/fuzz.sh --list" 2
		chosen+=("$1")
		;;
	esac
	shift
done
((${#chosen[@]} > 0)) || chosen=("${targets[@]}")

cargo_target
CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fuzz
# What cargo-fuzz sets. These options of the compiler are for nightly ones, but are the same in a stable one.
export CARGO_TARGET_DIR RUSTC_BOOTSTRAP=1
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
RUSTFLAGS+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS+=" -Ccodegen-units=1 --cfg fuzzing"
export RUSTFLAGS

bins=()
for target in "${chosen[@]}"; do bins+=(--bin "$target"); done
cargo build --release --manifest-path fuzz/Cargo.toml --target "$host" "${bins[@]}"

found=0
for target in "${chosen[@]}"; do
	out=$(cache_dir)/fuzz/$target
	mkdir -p "$out/corpus"
	program=$CARGO_TARGET_DIR/$host/release/$target
	printf '== %s, for %d s\n' "$target" "$seconds"
	# A second is far more than any input takes; packed traces are the slowest.
	if ! "$program" -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
		-artifact_prefix="$out/" "$out/corpus" "fuzz/corpus/$target" 2>"$out/log"; then
		found=1
		grep -E '^panic:|ERROR:|SUMMARY:|Test unit written' "$out/log" || tail -n 20 "$out/log"
		printf 'again: %s FILE\n' "$program"
	fi
	grep -E '^stat::(number_of_executed_units|peak_rss_mb)|^#[0-9]+.*DONE' "$out/log" || true
done
exit "$found"
