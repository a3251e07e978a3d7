//! Finds SPDK, compiles the C shim against it and generates bindings of the shim's header.

use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

fn main() {
    let spdk = spdk_dir();
    // The root build script links; it reads this as DEP_PRESNAP_SPDK_DIR.
    println!("cargo::metadata=dir={}", spdk.display());
    for header in ["version.h", "config.h", "bdev_module.h"] {
        println!("cargo::rerun-if-changed={}", spdk.join("include/spdk").join(header).display());
    }
    println!("cargo::rerun-if-changed=shim");

    compile_shim(&spdk);
    generate_bindings();
}

/// `SPDK_DIR`, else where scripts/setup.sh builds it.
fn spdk_dir() -> PathBuf {
    for name in ["SPDK_DIR", "PRESNAP_CACHE", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let from_env = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let dir = if let Some(dir) = from_env("SPDK_DIR") {
        PathBuf::from(dir)
    } else {
        let cache = from_env("PRESNAP_CACHE").map(PathBuf::from).or_else(|| {
            let base = from_env("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| from_env("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
            Some(base.join("presnap"))
        });
        let Some(cache) = cache else { fail("neither SPDK_DIR nor PRESNAP_CACHE nor HOME is set") };
        cache.join("spdk")
    };
    for (file, what) in [("include/spdk/bdev_module.h", "no SPDK tree"), ("build/lib", "not built")]
    {
        if !dir.join(file).exists() {
            // Look again next time, whatever cargo thinks has changed.
            println!("cargo::rerun-if-changed={}", dir.join(file).display());
            fail(&format!("SPDK in {}: {what} ({file} is missing)", dir.display()));
        }
    }
    dir
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    eprintln!("Run scripts/setup.sh, or set SPDK_DIR to a built SPDK tree (v20.07 or newer).");
    eprintln!("Without SPDK only the pure parts build: cargo build --no-default-features");
    exit(1);
}

fn compile_shim(spdk: &Path) {
    cc::Build::new()
        .files(
            ["env", "stack", "bdev", "module", "command", "rpc", "nvmf"]
                .map(|name| format!("shim/{name}.c")),
        )
        // A system directory: the warnings below are for our code, not for SPDK's headers.
        .flag("-isystem")
        .flag(spdk.join("include").to_str().expect("the SPDK path is UTF-8"))
        .flag("-isystem")
        .flag(spdk.join("dpdk/build/include").to_str().expect("the SPDK path is UTF-8"))
        .std("gnu11")
        .define("_GNU_SOURCE", None)
        .flag("-Wconversion")
        .extra_warnings(true)
        .warnings(true)
        .warnings_into_errors(true)
        // Hot path: also optimized in debug builds.
        .opt_level(2)
        // Whole: the bdev module registers itself in a constructor that nothing else refers to.
        .link_lib_modifier("-bundle")
        .link_lib_modifier("+whole-archive")
        .compile("psc");
}

fn generate_bindings() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindgen::Builder::default()
        .header("shim/psc.h")
        .allowlist_item("(psc|psr|PSC)_.*")
        .prepend_enum_name(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .derive_default(true)
        .layout_tests(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .unwrap_or_else(|error| fail(&format!("bindgen: {error}")))
        .write_to_file(out.join("bindings.rs"))
        .unwrap_or_else(|error| fail(&format!("bindings.rs: {error}")));
}
