use serde_json::json;

use super::super::*;
use super::{decode, distance, nearest};

fn message(method: &str, params: impl std::borrow::Borrow<serde_json::Value>) -> String {
    let error = decode(method, params.borrow()).expect_err("must be refused");
    assert_eq!(error.code, Errno::Inval.code(), "{error}");
    assert!(error.message.starts_with(method), "{error}");
    assert!(!error.message.contains('\n'), "{error}");
    error.message
}

/// A value that the parameter takes and that is not its default.
fn sample(param: &schema::Param) -> serde_json::Value {
    use schema::{Kind, Text};
    let text = |text: Text| match text {
        Text::Name => json!("vol0"),
        Text::Bdev => json!("Nvme0n1"),
        Text::Uuid => json!("6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
        Text::Nqn => json!("nqn.2016-06.io.spdk:host1"),
        Text::Transport => json!("RDMA"),
        Text::Word(_) => json!("192.0.2.1"),
    };
    match param.kind {
        Kind::Flag => json!(true),
        Kind::Integer { max, .. } => json!(max),
        Kind::Share => json!(0.25),
        Kind::Text(kind) => text(kind),
        Kind::Choice(choices) => json!(choices[0]),
        Kind::List { item, .. } => json!([text(item)]),
    }
}

#[test]
fn table_and_types_name_the_same_parameters() {
    let methods: Vec<_> = METHODS.iter().map(|method| method.name).collect();
    assert_eq!(methods, Params::METHODS);
    for method in METHODS {
        let full: serde_json::Map<_, _> =
            method.params.iter().map(|p| (p.name.to_owned(), sample(p))).collect();
        let full = serde_json::Value::Object(full);
        let typed = decode(method.name, &full).unwrap();
        assert_eq!(typed.method(), method.name);
        assert_eq!(typed.to_json(), full, "{}", method.name);
    }
}

#[test]
fn requests_with_only_what_is_required_pass_and_get_the_defaults() {
    for method in METHODS {
        let least: serde_json::Map<_, _> = method
            .params
            .iter()
            .filter(|p| p.required || method.one_of.first() == Some(&p.name))
            .map(|p| (p.name.to_owned(), sample(p)))
            .collect();
        let typed = decode(method.name, &serde_json::Value::Object(least.clone())).unwrap();
        let json = typed.to_json();
        for param in method.params {
            match param.default {
                Some(default) if !least.contains_key(param.name) => {
                    let default: serde_json::Value = serde_json::from_str(default).unwrap();
                    assert_eq!(json[param.name], default, "{} {}", method.name, param.name);
                }
                _ => assert_eq!(json.get(param.name), least.get(param.name)),
            }
        }
        // What was decoded once is in the form that passes again: saved configurations rely on it.
        assert_eq!(decode(method.name, &json).unwrap(), typed);
    }
}

#[test]
fn defaults_and_examples_in_the_table_pass() {
    for method in METHODS {
        let example: serde_json::Value = serde_json::from_str(method.example).unwrap();
        decode(method.name, &example).unwrap();
        assert!(!method.summary.is_empty() && method.summary.ends_with('.'));
        for param in method.params {
            assert!(param.doc.ends_with('.'), "{} {}", method.name, param.name);
            assert!(!(param.required && param.default.is_some()));
            if let Some(default) = param.default {
                let default = serde_json::from_str(default).unwrap();
                super::check_value(param, &default).unwrap();
            }
        }
        for name in method.one_of.iter().chain(method.command.positional) {
            assert!(method.param(name).is_some(), "{} {name}", method.name);
        }
        assert!(!method.command.examples.is_empty(), "{}", method.name);
    }
}

#[test]
fn each_required_parameter_is_missed_by_name() {
    for method in METHODS {
        for missing in method.params.iter().filter(|p| p.required) {
            let rest: serde_json::Map<_, _> = method
                .params
                .iter()
                .filter(|p| p.name != missing.name)
                .map(|p| (p.name.to_owned(), sample(p)))
                .collect();
            let message = message(method.name, serde_json::Value::Object(rest));
            assert!(message.contains(&format!("parameter {:?} is missing", missing.name)));
        }
    }
    let message = message("presnap_store_load", json!({}));
    assert!(message.contains("one of the parameters bdev, name"), "{message}");
}

#[test]
fn wrong_types_are_refused_for_every_parameter() {
    let wrong = [json!(null), json!(true), json!(1.5), json!("\u{7}"), json!([]), json!({})];
    for method in METHODS {
        for param in method.params {
            for value in &wrong {
                let fits = matches!((param.kind, value), (schema::Kind::Flag, v) if v.is_boolean());
                if fits {
                    continue;
                }
                let message = message(method.name, json!({ param.name: value }));
                // Another parameter may be missing first; that is as good a refusal.
                assert!(
                    message.contains(&format!("parameter {:?}", param.name))
                        || message.contains("is missing"),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn unknown_parameters_are_named_with_the_nearest_known() {
    let text = message("bdev_presnap_create", json!({"name": "v", "base_bdv": "b", "store": "s"}));
    assert!(text.contains(r#"unknown parameter "base_bdv"; did you mean "base_bdev"?"#), "{text}");
    let text = message("bdev_presnap_delete", json!({"name": "v", "colour": 1}));
    assert!(text.contains(r#""colour"; it takes name"#), "{text}");
    let long = "x".repeat(100_000);
    let text = message("bdev_presnap_delete", json!({ long: 1 }));
    assert!(text.len() < 300, "{text}");
}

#[test]
fn unknown_methods_are_named_with_the_nearest_known() {
    let error = decode("presnap_get_store", &json!({})).unwrap_err();
    assert_eq!(error.code, METHOD_NOT_FOUND_CODE);
    assert!(error.message.contains("did you mean presnap_get_stores?"), "{error}");
    let error = decode("bdev_get_bdevs", &json!({})).unwrap_err();
    assert!(!error.message.contains("did you mean"), "{error}");
}

#[test]
fn parameters_are_an_object_or_nothing() {
    assert!(decode("presnap_get_stores", &json!(null)).is_ok());
    assert!(decode("presnap_get_stores", &json!({})).is_ok());
    let text = message("presnap_get_stores", json!(["store0"]));
    assert!(text.contains("must be an object, not a list"), "{text}");
}

#[test]
fn sizes_are_powers_of_two_within_bounds() {
    let create = |kib: serde_json::Value| {
        let params = json!({"name": "store0", "bdev": "Nvme1n1", "slot_size_kib": kib});
        decode("presnap_store_create", &params).map_err(|error| error.message)
    };
    for kib in [64, 128, 256, 4096] {
        let Ok(Params::StoreCreate(params)) = create(json!(kib)) else { panic!("{kib}") };
        assert_eq!(params.slot_size_kib, kib);
        assert!(!params.force);
    }
    assert!(create(json!(300)).unwrap_err().contains("a power of two, such as 256 or 512 (KiB)"));
    for kib in [json!(0), json!(32), json!(8192), json!(-64), json!(256.0), json!(1e30)] {
        let text = create(kib).unwrap_err();
        assert!(text.contains("must be a whole number from 64 to 4096 (KiB)"), "{text}");
    }
    assert!(create(json!("256")).unwrap_err().contains("must be a whole number, not a string"));
}

#[test]
fn names_are_safe_to_build_other_names_from() {
    let name = |name: &str| {
        let params = json!({"volume": "vol0", "name": name});
        decode("presnap_snapshot_create", &params).map_err(|error| error.message)
    };
    for good in ["a", "0", "monday.2026-01-05_x", &"n".repeat(63)] {
        assert!(name(good).is_ok(), "{good}");
    }
    for bad in ["a@b", "a/b", "../x", ".hidden", "-x", "a b", "a\n", "a\0", "täglich", "a:b"] {
        assert!(name(bad).is_err(), "{bad:?}");
    }
    assert!(name("").unwrap_err().contains("empty"));
    assert!(name(&"n".repeat(64)).unwrap_err().contains("64 bytes: at most 63"));
    assert!(name("a@b").unwrap_err().contains("'@' and '/' are not allowed"));
}

#[test]
fn uuids_have_one_form() {
    let create = |uuid: &str| {
        let params = json!({"volume": "vol0", "name": "monday", "uuid": uuid});
        decode("presnap_snapshot_create", &params)
    };
    let Ok(Params::SnapshotCreate(params)) = create("6F9619FF-8B86-4D01-B42D-00CF4FC964FF") else {
        panic!("upper case is taken")
    };
    assert_eq!(params.uuid.unwrap().to_string(), "6f9619ff-8b86-4d01-b42d-00cf4fc964ff");
    assert_eq!((params.wait, params.timeout_ms), (Wait::Complete, 0));
    for bad in [
        "",
        "6f9619ff8b864d01b42d00cf4fc964ff",
        "{6f9619ff-8b86-4d01-b42d-00cf4fc964ff}",
        "00000000-0000-0000-0000-000000000000",
        "6f9619ff-8b86-4d01-b42d-00cf4fc964fg",
    ] {
        assert!(create(bad).is_err(), "{bad}");
    }
}

#[test]
fn exports_take_nqns_and_addresses() {
    let export = |key: &str, value: serde_json::Value| {
        let params = json!({"volume": "vol0", "name": "monday", key: value});
        decode("presnap_snapshot_export", &params).map_err(|error| error.message)
    };
    let Ok(Params::SnapshotExport(params)) = export("trtype", json!("tcp")) else { panic!() };
    assert_eq!(params.trtype, "TCP");
    assert_eq!((params.traddr.as_str(), params.trsvcid.as_str()), ("127.0.0.1", "4420"));
    assert_eq!((params.nqn, params.hosts, params.allow_any_host), (None, None, false));
    for good in [
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.2014-08.org.nvmexpress:uuid:9f2a1c1e-7d1b-4f0e-9d0e-2f8f2d8a6c11",
        &default_nqn(&"v".repeat(63), &"s".repeat(63), uuid::Uuid::max()),
    ] {
        assert!(export("nqn", json!(good)).is_ok(), "{good}");
        assert!(export("hosts", json!([good])).is_ok(), "{good}");
    }
    for bad in [
        "nqn",
        "iqn.2016-06.io.spdk:a",
        "nqn.2016-06.io.spdk",
        "nqn.2016-06.:a",
        "nqn.é",
        "nqn.20-é",
    ] {
        assert!(export("nqn", json!(bad)).is_err(), "{bad}");
    }
    assert!(export("nqn", json!(format!("nqn.2016-06.io.spdk:{}", "x".repeat(204)))).is_err());
    assert!(export("hosts", json!([])).unwrap_err().contains("empty list"));
    assert!(export("hosts", json!(["x"])).unwrap_err().contains("entry 0 is \"x\""));
    assert!(export("hosts", json!([1])).unwrap_err().contains("entry 0 must be a string"));
    let many = vec!["nqn.2016-06.io.spdk:h"; table::HOSTS_MAX + 1];
    assert!(export("hosts", json!(many)).unwrap_err().contains("65 entries: at most 64"));
    assert!(export("traddr", json!("1 2")).is_err());
    assert!(export("trtype", json!("T-C")).is_err());
}

#[test]
fn policies_are_those_of_the_table() {
    let set = |policy: &str| {
        decode("presnap_set_policy", &json!({"volume": "vol0", "policy": policy}))
            .map_err(|error| error.message)
    };
    let Ok(Params::SetPolicy(params)) = set("off") else { panic!() };
    assert_eq!((params.policy, params.idle_ms), (Some(PolicyName::Off), None));
    assert!(set("best").unwrap_err().contains("must be one of off, idle"));
    let Some(table) = method("presnap_set_policy") else { panic!() };
    let Some(schema::Kind::Choice(names)) = table.param("policy").map(|param| param.kind) else {
        panic!()
    };
    for name in names {
        assert!(serde_json::from_value::<PolicyName>(json!(name)).is_ok(), "{name}");
    }
}

#[test]
fn slips_are_near_and_strangers_are_not() {
    assert_eq!(distance("kitten", "sitting"), 3);
    assert_eq!(distance("", "abc"), 3);
    assert_eq!(distance("abc", ""), 3);
    assert_eq!(nearest("vlume", ["volume", "name"].into_iter()), Some("volume"));
    assert_eq!(nearest("zebra", ["volume", "name"].into_iter()), None);
    assert_eq!(nearest(&"v".repeat(64), ["volume"].into_iter()), None);
}
