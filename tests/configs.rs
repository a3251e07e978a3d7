//! The configurations in configs/ as far as they can be checked without a target: they are
//! SPDK configurations, presnap's methods in them are right, and everything that a method names
//! was made by a method before it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use presnap::rpc::{Params, decode, method};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

fn configs() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder()).expect("configs/ is there") {
        let path = entry.expect("configs/ can be read").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read_to_string(&path).expect("a configuration can be read");
            let value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            all.push((
                path.file_name().expect("files have names").to_string_lossy().into_owned(),
                value,
            ));
        }
    }
    all.sort_by(|left, right| left.0.cmp(&right.0));
    all
}

/// (subsystem, method, parameters) in the order of the file.
fn calls(config: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for subsystem in config["subsystems"].as_array().expect("a list of subsystems") {
        let name = subsystem["subsystem"].as_str().expect("a name");
        for call in subsystem["config"].as_array().expect("a list of methods") {
            let method = call["method"].as_str().expect("a method's name");
            all.push((name.to_owned(), method.to_owned(), call["params"].clone()));
        }
    }
    all
}

#[test]
fn the_four_configurations_are_there_and_explained() {
    let names: Vec<_> = configs().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["demo.json", "files.json", "nvme.json", "remote.json"]);
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for name in names {
        assert!(readme.contains(&name), "{name}");
    }
}

#[test]
fn methods_of_presnap_are_right_and_in_the_bdev_subsystem() {
    for (file, config) in configs() {
        let mut found = 0;
        for (subsystem, name, params) in calls(&config) {
            if method(&name).is_some() {
                found += 1;
                assert_eq!(subsystem, "bdev", "{file} {name}");
                decode(&name, &params).unwrap_or_else(|error| panic!("{file}: {error}"));
            } else {
                assert!(!name.contains("presnap"), "{file}: {name} is no method");
            }
        }
        assert!(found >= 2, "{file}");
    }
}

#[test]
fn everything_named_was_made_before() {
    for (file, config) in configs() {
        let (mut bdevs, mut stores, mut nqns) = (HashSet::new(), HashSet::new(), HashSet::new());
        let mut transports = HashSet::new();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for (_, name, params) in calls(&config) {
            match name.as_str() {
                "bdev_malloc_create" | "bdev_aio_create" => {
                    bdevs.insert(text(&params["name"]));
                }
                "bdev_nvme_attach_controller" => {
                    bdevs.insert(text(&params["name"]) + "n1");
                }
                "nvmf_create_transport" => {
                    transports.insert(text(&params["trtype"]));
                }
                "nvmf_create_subsystem" => {
                    nqns.insert(text(&params["nqn"]));
                }
                "nvmf_subsystem_add_ns" => {
                    assert!(nqns.contains(&text(&params["nqn"])), "{file}");
                    assert!(bdevs.contains(&text(&params["namespace"]["bdev_name"])), "{file}");
                }
                "nvmf_subsystem_add_listener" => {
                    assert!(nqns.contains(&text(&params["nqn"])), "{file}");
                    let address = &params["listen_address"];
                    assert!(transports.contains(&text(&address["trtype"])), "{file}");
                    assert_eq!(address["traddr"], "127.0.0.1", "{file} is safe as it is");
                }
                _ => match decode(&name, &params) {
                    Ok(Params::StoreCreate(create)) => {
                        assert!(bdevs.contains(&create.bdev), "{file}");
                        stores.insert(create.name);
                    }
                    Ok(Params::StoreLoad(load)) => {
                        assert!(bdevs.contains(&load.bdev.unwrap()), "{file}");
                        stores.insert(load.name.unwrap());
                    }
                    Ok(Params::VolumeCreate(create)) => {
                        assert!(bdevs.contains(&create.base_bdev), "{file}");
                        assert!(stores.contains(&create.store), "{file}");
                        bdevs.insert(create.name);
                    }
                    other => panic!("{file}: {name} is not expected here: {other:?}"),
                },
            }
        }
    }
}

#[test]
fn only_the_demo_formats_anything() {
    for (file, config) in configs() {
        let formats = calls(&config).iter().any(|(_, name, _)| name == "presnap_store_create");
        assert_eq!(formats, file == "demo.json", "{file}");
    }
}
