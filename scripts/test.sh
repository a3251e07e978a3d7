#!/usr/bin/env bash
# Runs every check of the project, and says at the end how many passed and failed.
#
# A stage is a function stage_NAME below, run in a shell and process group of its own. It prints what it
# does, and calls `count PASSED FAILED` at least once. A stage that counts nothing, or that ends with a status
# other than 0 and no failure counted, is one failure: nothing that did not run passes for a success.
# Stages run one after another, since most of them want both cores, and some the hugepages.
# Stages are called by name, which shellcheck takes for unreachable code:
# shellcheck disable=SC2317
set -euo pipefail

# Messages of tools, which are read below, are the same everywhere.
export LC_ALL=C
scripts_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$scripts_dir/lib.sh"
cd "$scripts_dir/.."

# A stage that takes longer than this hangs: with an empty cache the longest takes a third of it.
stage_seconds_max=1500
# Two compilers: linking a program with SPDK in it takes 1 GiB, and others may use the machine.
jobs=2

declare -A stage_about=(
	[setup]="Debian packages and SPDK (scripts/setup.sh)"
	[fmt]="formatting"
	[shell]="shellcheck on all scripts"
	[clippy-pure]="clippy without SPDK, warnings are errors"
	[pure]="tests of the rooms without SPDK"
	[loom]="the write gate under the model checker"
	[model]="the model's tests"
	[clippy]="clippy with SPDK, warnings are errors; the C shim's warnings too"
	[docs]="rustdoc without warnings; links in Markdown lead somewhere"
	[spdk]="tests with SPDK, the target among them"
	[qemu]="the target on emulated NVMe devices, a filesystem on the kernel's initiator, a power cut"
	[mutations]="every rule of the gate broken on purpose is noticed"
	[sim-mutations]="the same for engine, store and what takes turns, by the simulator"
)
stages=(setup fmt shell clippy-pure pure loom clippy docs spdk qemu model)
stages_quick=(fmt shell clippy-pure pure)
# Only by name: long, and of use to those who change what holds I1 to I8.
stages_named=(mutations sim-mutations)

usage() {
	cat <<EOF
Usage: scripts/test.sh [OPTION]

Sets everything up, builds, runs all checks and tests. The last line is 'N passed, N failed', with ', N skipped'
behind it where a stage could not be run. Needs root and 4 GiB of memory for hugepages, which it gives back.

  --quick        only what needs neither SPDK nor root: ${stages_quick[*]}
  --stage NAME   only this stage (may be given several times)
  --list         list the stages
  --help         this text

Environment:
  CARGO_TARGET_DIR   where cargo builds (default: a folder in the cache, per version of Rust)
  PRESNAP_CACHE      the cache folder (default: \$XDG_CACHE_HOME/presnap, else ~/.cache/presnap)
  SPDK_DIR           a built SPDK tree to test with, instead of the one that scripts/setup.sh builds

Examples:
  scripts/test.sh                            as root: everything
  scripts/test.sh --quick                    while working on a room without SPDK
  scripts/test.sh --stage spdk               only the tests with SPDK
  scripts/test.sh --stage mutations          break the gate's rules on purpose
  scripts/test.sh --stage sim-mutations      break those of engine and store

Status: 0 all passed, 1 something failed, 2 wrong usage.
EOF
}

list_stages() {
	local name
	for name in "${stages[@]}" "${stages_named[@]}"; do
		printf '%-14s %s\n' "$name" "${stage_about[$name]}"
	done
}

chosen=()
while (($# > 0)); do
	case $1 in
	--quick) chosen+=("${stages_quick[@]}") ;;
	--stage)
		[[ -n ${2:-} && -n ${stage_about[$2]:-} ]] || die "--stage needs the name of a stage, not '${2:-}'" "see scripts/test.sh --list" 2
		chosen+=("$2")
		shift
		;;
	--list)
		list_stages
		exit 0
		;;
	-h | --help)
		usage
		exit 0
		;;
	*) die "unknown argument '$1'" "see scripts/test.sh --help" 2 ;;
	esac
	shift
done
if ((${#chosen[@]} == 0)); then
	((EUID == 0)) || die "the tests with SPDK need root" "run the same command as root: sudo $0; without root: $0 --quick"
	chosen=("${stages[@]}")
fi

# --- counting --------------------------------------------------------------------------------------

passed=0
failed=0
skipped=0
remarks=()

# count PASSED FAILED: what a stage has to report. Through a file, since a stage is a shell of its own.
count() { printf '%d %d\n' "$1" "$2" >>"$work/counts"; }

# unable WHY: the stage cannot do its work here.
unable() {
	printf 'cannot run: %s\n' "$1"
	printf '%s\n' "$1" >"$work/why"
	count 0 1
}

# skip WHY: the stage cannot do its work here, and need not.
skip() {
	printf 'skipped: %s\n' "$1"
	printf '%s\n' "$1" >"$work/skipped"
}

# check COMMAND...: one check, passed when the command succeeds.
check() {
	if "$@"; then count 1 0; else count 0 1; fi
}

# count_tests COMMAND...: runs cargo nextest or cargo test, and counts the tests by what it says.
count_tests() {
	local status=0 ok bad
	"$@" 2>&1 | tee "$work/output" || status=$?
	# nextest: "Summary [   1.2s] 9 tests run: 6 passed (1 slow), 1 failed, 1 timed out, 1 exec failed, 3 skipped".
	# cargo test: "test result: ok. 8 passed; 1 failed; 0 ignored; ...", once per program.
	read -r ok bad < <(awk '
		/^ *Summary \[/ || /^test result: / {
			gsub(/[;,]/, "")
			for (i = 1; i < NF; i++) {
				if ($(i + 1) == "passed") ok += $i
				if ($(i + 1) ~ /^(failed|timed|exec)$/) bad += $i
			}
		}
		END { print ok + 0, bad + 0 }' "$work/output")
	# Not compiled, or ended from outside: no number says so.
	((status != 0 && bad == 0)) && bad=1
	count "$ok" "$bad"
}

# --- running a stage -------------------------------------------------------------------------------

stage_group=

stop_stage() {
	[[ -n $stage_group ]] || return 0
	kill -TERM -- "-$stage_group" 2>/dev/null || true
	wait_until 15 stage_ended || kill -KILL -- "-$stage_group" 2>/dev/null || true
	stage_group=
}

stage_ended() { ! kill -0 -- "-$stage_group" 2>/dev/null; }

# What is worth a line on the screen: no test that passed, no crate that compiled. The log has it all.
show() {
	grep --line-buffered -vE \
		'^ *(PASS|Compiling|Checking|Fresh|Downloaded|Downloading|Locking|Adding|Blocking|Documenting|Nextest|Starting|Updating) |^test .* \.\.\. ok$|^ *$|^ *─*$' || true
}

run_stage() {
	local name=$1 begun=$SECONDS ok=0 bad=0 status why='' log_file=$logs/$1.log n m
	printf '== %s: %s\n' "$name" "${stage_about[$name]}"
	rm -f "$work"/{counts,why,skipped,status}
	touch "$work/counts"
	set -m
	{
		set +e
		(
			set -e
			"stage_$name"
		)
		printf '%s\n' $? >"$work/status"
	} </dev/null 2>&1 | tee "$log_file" | show &
	stage_group=$(jobs -p %%)
	set +m
	if ! wait_until "$stage_seconds_max" stage_ended; then
		printf 'it took longer than %d s\n' "$stage_seconds_max" >"$work/why"
		stop_stage
	fi
	wait || true
	stage_group=
	while read -r n m; do
		ok=$((ok + n))
		bad=$((bad + m))
	done <"$work/counts"
	status=$(cat "$work/status" 2>/dev/null) || status=killed
	if [[ -s $work/why ]]; then why=$(<"$work/why"); fi
	if ((ok + bad == 0)) && [[ $status == 0 && -s $work/skipped ]]; then
		skipped=$((skipped + 1))
		remarks+=("skipped $name: $(<"$work/skipped")")
		printf '== %s: skipped\n\n' "$name"
		return
	fi
	if ((bad == 0)) && [[ $status != 0 || -n $why || $ok == 0 ]]; then
		bad=1
		why=${why:-"it counted $ok checks and ended with status $status"}
	fi
	passed=$((passed + ok))
	failed=$((failed + bad))
	((bad == 0)) || remarks+=("FAILED $name: $bad failed${why:+ ($why)}; everything it said: $log_file")
	printf '== %s: %d passed, %d failed, in %s (%s since the start)\n\n' "$name" "$ok" "$bad" \
		"$(minutes $((SECONDS - begun)))" "$(minutes "$SECONDS")"
}

# --- building --------------------------------------------------------------------------------------

have_nextest() { cargo nextest --version >/dev/null 2>&1; }

# run_tests THREADS ARGUMENT...: with nextest each test is a process of its own, and one that hangs is ended.
run_tests() {
	local threads=$1
	shift
	if have_nextest; then
		count_tests cargo nextest run --color never --no-fail-fast --build-jobs "$jobs" --test-threads "$threads" "$@"
	else
		count_tests cargo test --color never --no-fail-fast --jobs "$jobs" "$@" -- --test-threads "$threads"
	fi
}

# --- stages ----------------------------------------------------------------------------------------

stage_setup() {
	check scripts/setup.sh --tests
}

stage_fmt() {
	check cargo fmt --all --check
}

stage_shell() {
	local file files
	if ! command -v shellcheck >/dev/null; then
		unable "shellcheck is missing; as root: scripts/setup.sh --tests"
		return
	fi
	mapfile -t files < <(grep -lrE '^#!.*\bbash$|^# shellcheck shell=bash' scripts .ci perf tests 2>/dev/null)
	for file in "${files[@]}"; do
		check shellcheck --external-sources "$file"
	done
}

stage_clippy-pure() {
	check cargo clippy --color never --jobs "$jobs" --no-default-features --all-targets -- -D warnings
}

stage_pure() {
	run_tests "$(nproc)" --no-default-features
}

stage_model() {
	# The program of stage spdk, so that nothing is built twice. cargo test, where there is no nextest, runs all of it.
	local only=()
	if have_nextest; then only=(--filterset 'test(/^(predict|replay|perf::prediction)::/)'); fi
	run_tests "$(nproc)" --lib "${only[@]}"
}

# In a small crate with the gate alone: the model checker's flag would have every dependency built again.
stage_loom() {
	local crate=$CARGO_TARGET_DIR/gate-alone
	python3 tests/gate_mutations.py --make "$crate/crate"
	export CARGO_TARGET_DIR=$crate/target
	RUSTFLAGS="--cfg loom" count_tests cargo test --color never --jobs "$jobs" --release \
		--manifest-path "$crate/crate/Cargo.toml" --test loom_gate
}

stage_clippy() {
	check cargo clippy --color never --jobs "$jobs" --workspace --all-targets -- -D warnings
}

stage_docs() {
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" check cargo doc --color never --jobs "$jobs" --no-deps --no-default-features --document-private-items
	check python3 scripts/check_links.py
}

stage_spdk() {
	local file tests=() only=()
	for file in tests/*.rs tests/*/main.rs; do
		grep -q 'feature = "spdk"' "$file" || continue
		file=${file%/main.rs}
		tests+=(--test "$(basename "$file" .rs)")
	done
	# spdk_smoke expects the hugepages to be there; tests/target reserves its own.
	hugepages_reserve 768
	# The rooms without SPDK have had their tests.
	if have_nextest; then
		only=(--filterset 'not (kind(lib) and test(/^(gate|engine|store|monitor|predict|replay|perf|cli)::/))')
	fi
	run_tests 1 --lib "${tests[@]}" "${only[@]}"
}

stage_qemu() {
	local status=0 ok bad
	tests/qemu/run.sh 2>&1 | tee "$work/output" || status=$?
	if ((status == 77)); then
		skip "$(sed -n 's/^skipped: //p' "$work/output")"
		return
	fi
	read -r ok bad < <(sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$work/output") || { ok=0 bad=0; }
	# It ended before it could say so.
	((status != 0 && bad == 0)) && bad=1
	count "$ok" "$bad"
}

stage_mutations() {
	check python3 tests/gate_mutations.py
}

stage_sim-mutations() {
	check python3 tests/sim_mutations.py
}

# --- main ------------------------------------------------------------------------------------------

work=$(mktemp -d)
on_exit "rm -rf '$work'"
on_exit stop_stage
logs=$(cache_dir)/logs/test
mkdir -p "$logs" || die "cannot write to $logs" "set PRESNAP_CACHE to a folder of yours"
# The log of a stage of the run before would be mistaken for this one's.
rm -f "$logs"/*.log 2>/dev/null || die "the logs in $logs are another user's" "set PRESNAP_CACHE to a folder of yours"
# No core file of a test that aborts on purpose.
ulimit -c 0

if [[ " ${chosen[*]} " == *" setup "* ]]; then run_stage setup; fi
cargo_target
for name in "${chosen[@]}"; do
	[[ $name == setup ]] || run_stage "$name"
done

for line in "${remarks[@]}"; do printf '%s\n' "$line"; done
printf '%d passed, %d failed' "$passed" "$failed"
if ((skipped > 0)); then printf ', %d skipped' "$skipped"; fi
printf '\n'
((failed == 0))
