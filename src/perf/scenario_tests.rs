use super::*;

const GOOD: &str = r#"{"title": "t", "about": "a", "volume_mib": 64, "contenders": ["bare"],
    "run": {"kind": "load", "load": {"rw": "randwrite"}, "seconds": 20, "snapshots_at_s": [10]}}"#;

#[test]
fn shipped_scenarios_are_right() {
    for scenario in shipped() {
        assert_eq!(scenario.problem(), None, "{}", scenario.name);
        for goal in &scenario.goals {
            assert!(super::super::metric::find(&goal.metric).is_some(), "{}", goal.metric);
        }
        let names: Vec<String> = scenario.contenders.iter().map(ToString::to_string).collect();
        let known = |name: &String| {
            let name = name.split('@').next().unwrap_or_default();
            names.is_empty() || names.iter().any(|known| known == name)
        };
        for goal in &scenario.goals {
            assert!(known(&goal.contender), "{}: {}", scenario.name, goal.contender);
            assert!(goal.against.as_ref().is_none_or(known), "{}", scenario.name);
        }
    }
    assert_eq!(shipped().count(), std::fs::read_dir("perf/scenarios").unwrap().count());
}

#[test]
fn what_is_wrong_is_said_with_a_remedy() {
    assert!(Scenario::parse("t", GOOD).is_ok());
    for (from, to, words) in [
        (r#""seconds": 20"#, r#""secnds": 20"#, "unknown field `secnds`"),
        (r#""volume_mib": 64"#, r#""volume_mib": 63"#, "multiple of 4"),
        (r#"["bare"]"#, "[]", "name some"),
        (r#"["bare"]"#, r#"["lvl:1MiB"]"#, "known are bare"),
        (r#"["bare"]"#, r#"["bare"], "again": "passthru""#, "name one of them"),
        (r#"["bare"]"#, r#"["presnap:off"], "transport": "direct""#, "use transport tcp"),
        (r#"["bare"]"#, r#"["bare"], "rounds": 0"#, "at least 1"),
        (r#"["bare"]"#, r#"["bare"], "devices": {"master": "ram"}"#, "give malloc"),
        ("[10]", "[4]", "window_s"),
        ("[10]", "[16]", "window_s"),
        (r#"{"rw": "randwrite"}"#, "{}", "neither rw nor trace"),
        (r#"{"rw": "randwrite"}"#, r#"{"trace": {}}"#, "one of file and workload"),
        (r#"{"rw": "randwrite"}"#, r#"{"rw": "read", "jobs": 0}"#, "at least 1"),
        (r#""load", "load""#, r#""lod", "load""#, "unknown variant `lod`"),
    ] {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD);
        let error = Scenario::parse("t", &text).unwrap_err();
        assert!(error.starts_with("scenario t: ") && error.contains(words), "{words}: {error}");
    }
}

#[test]
fn scenarios_are_found_by_name_and_by_path() {
    assert_eq!(Scenario::find("zipf").unwrap().name, "zipf");
    assert_eq!(Scenario::find("perf/scenarios/growth.json").unwrap().name, "growth");
    let error = Scenario::find("zpf").unwrap_err();
    assert!(error.contains("shipped are smoke, zipf"), "{error}");
    assert!(Scenario::find("./none.json").unwrap_err().contains("check its path"));
}
