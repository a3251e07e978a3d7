//! Text made from the table: docs/rpc.md, the help of one method, `scripts/presnap_rpc.py`.

use std::fmt::Write as _;

use super::error::Errno;
use super::objects::{Field, OBJECTS, Volume};
use super::schema::{Kind, Method, Param, Reply, Text};
use super::table::METHODS;

const HEAD: &str = "\
# presnap's JSON-RPC methods

Generated from `src/rpc/table.rs` by `presnap rpc --doc`: change that, not this.

presnap is an SPDK target: these methods are called like SPDK's own, over the same socket
(`/var/tmp/spdk.sock` unless started with another), and may stand in SPDK's JSON configuration.
Three ways to call one:

```console
$ presnap snapshot create vol0 monday
$ presnap rpc presnap_snapshot_create '{\"volume\": \"vol0\", \"name\": \"monday\"}'
$ PYTHONPATH=scripts \"$SPDK_DIR\"/scripts/rpc.py --plugin presnap_rpc \\
      presnap_snapshot_create vol0 monday
```

A request with an unknown parameter, a missing one, or one of the wrong type or out of bounds is
refused with `-EINVAL` (-22) before anything is done, with a message that names the parameter. Names
of stores, volumes and snapshots have 1 to 63 letters, digits, `.`, `_` and `-`, and begin with a
letter or digit. A snapshot's bdev is named `<volume>@<snapshot>`.
";

/// docs/rpc.md.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    out.push_str("\n## Methods\n\n| method | command | what it does |\n| --- | --- | --- |\n");
    for method in METHODS {
        put(
            &mut out,
            format_args!(
                "| [{0}](#{0}) | `presnap {1}` | {2} |\n",
                method.name,
                method.command.path.join(" "),
                method.summary
            ),
        );
    }
    for method in METHODS {
        method_markdown(&mut out, method);
    }
    errors_markdown(&mut out);
    objects_markdown(&mut out);
    out
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string does not fail");
}

fn method_markdown(out: &mut String, method: &Method) {
    put(out, format_args!("\n## {}\n\n{}\n", method.name, method.summary));
    for paragraph in method.details.split("\n\n").filter(|text| !text.is_empty()) {
        put(out, format_args!("\n{}\n", wrapped(paragraph, 100, "")));
    }
    out.push_str("\n| parameter | type | default | what it is |\n| --- | --- | --- | --- |\n");
    for param in method.params {
        let name = if param.required { format!("**{}**", param.name) } else { param.name.into() };
        put(
            out,
            format_args!(
                "| {name} | {} | {} | {} |\n",
                kind_text(param.kind),
                default_text(method, param),
                param.doc
            ),
        );
    }
    put(out, format_args!("\nResult: {}. {}\n", reply_text(method.reply), method.reply_doc));
    put(
        out,
        format_args!(
            "\n```json\n{{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"{}\",\n \
             \"params\": {}}}\n```\n\n```json\n{{\"jsonrpc\": \"2.0\", \"id\": 1, \
             \"result\": {}}}\n```\n",
            method.name,
            wrapped(method.example, 100, "  "),
            method.reply.example_text()
        ),
    );
    if !method.errors.is_empty() {
        out.push_str("\n| error | when | what to do |\n| --- | --- | --- |\n");
    }
    for case in method.errors {
        put(
            out,
            format_args!(
                "| {} ({}) | {} | {} |\n",
                case.errno.name(),
                case.errno.code(),
                case.when,
                case.remedy
            ),
        );
    }
    out.push_str("\n```console\n");
    for example in method.command.examples {
        put(out, format_args!("$ {example}\n"));
    }
    out.push_str("```\n");
}

fn errors_markdown(out: &mut String) {
    out.push_str(
        "\n## Error codes\n\nA failed call answers with a negative errno and one line that names \
         the object and the remedy.\n\n| code | name |\n| --- | --- |\n",
    );
    for errno in Errno::ALL {
        put(out, format_args!("| {} | {} |\n", errno.code(), errno.name()));
    }
}

fn objects_markdown(out: &mut String) {
    out.push_str(
        "\n## Objects\n\nFields are only ever added. A field that does not apply is null, never \
         left out.\n",
    );
    for object in OBJECTS {
        put(out, format_args!("\n### {}\n\n{}\n\n", object.name, object.doc.trim()));
        out.push_str("| field | type | what it is |\n| --- | --- | --- |\n");
        for field in object.fields {
            let Field { name, rust_type, doc } = *field;
            put(out, format_args!("| {name} | {} | {} |\n", type_text(rust_type), doc.trim()));
        }
        if object.name == "Volume" {
            let example = serde_json::to_string_pretty(&Volume::example())
                .expect("objects hold nothing that JSON cannot");
            put(out, format_args!("\n```json\n{example}\n```\n"));
        }
    }
}

/// What `presnap rpc METHOD --help` prints.
pub fn method_help(method: &Method) -> String {
    let mut out = format!("{}: {}\n", method.name, method.summary);
    for paragraph in method.details.split("\n\n").filter(|text| !text.is_empty()) {
        put(&mut out, format_args!("\n{}\n", wrapped(paragraph, 80, "")));
    }
    out.push_str("\nParameters:\n");
    for param in method.params {
        put(
            &mut out,
            format_args!(
                "  {} ({}; {})\n      {}\n",
                param.name,
                kind_text(param.kind).replace('`', ""),
                match default_text(method, param).replace('`', "") {
                    text if param.required || text.starts_with("one of") => text,
                    text => format!("default: {text}"),
                },
                wrapped(param.doc, 80, "      ")
            ),
        );
    }
    let reply = reply_text(method.reply).replace('`', "");
    let reply = reply.split("](").next().unwrap_or_default().replace('[', "");
    put(
        &mut out,
        format_args!(
            "
Result: {reply}. {}
",
            method.reply_doc
        ),
    );
    if !method.errors.is_empty() {
        out.push_str("\nErrors:\n");
    }
    for case in method.errors {
        let text = format!(
            "{} ({}): {}. {}.",
            case.errno.name(),
            case.errno.code(),
            case.when,
            capitalised(case.remedy)
        );
        put(&mut out, format_args!("  {}\n", wrapped(&text, 80, "      ")));
    }
    out.push_str("\nExamples:\n");
    let params = wrapped(method.example, usize::MAX, "");
    put(&mut out, format_args!("  presnap rpc {} '{params}'\n", method.name));
    for example in method.command.examples {
        put(&mut out, format_args!("  {example}\n"));
    }
    out
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn text_kind(text: Text) -> &'static str {
    match text {
        Text::Name => "name",
        Text::Bdev => "bdev name",
        Text::Uuid => "UUID",
        Text::Nqn => "NQN",
        Text::Transport | Text::Word(_) => "string",
    }
}

/// Type and bounds in words.
pub(crate) fn kind_text(kind: Kind) -> String {
    match kind {
        Kind::Flag => "boolean".into(),
        Kind::Integer { unit, min, max, power_of_two: false } => {
            format!("number, {min} to {max}, {unit}")
        }
        Kind::Integer { unit, min, max, power_of_two: true } => {
            format!("power of two, {min} to {max}, {unit}")
        }
        Kind::Share => "number, 0 to 1".into(),
        Kind::Text(text) => text_kind(text).into(),
        Kind::Choice(choices) => {
            choices.iter().map(|choice| format!("`\"{choice}\"`")).collect::<Vec<_>>().join(" or ")
        }
        Kind::List { item, count_max } => {
            format!("list of 1 to {count_max} {}s", text_kind(item))
        }
    }
}

fn default_text(method: &Method, param: &Param) -> String {
    match param.default {
        _ if param.required => "required".into(),
        Some(json) => format!("`{json}`"),
        None if !param.absent.is_empty() => param.absent.into(),
        None if method.one_of.contains(&param.name) => {
            format!("one of {} required", method.one_of.join(", "))
        }
        None => "none".into(),
    }
}

fn reply_text(reply: Reply) -> &'static str {
    match reply {
        Reply::True => "`true`",
        Reply::BdevName => "string",
        Reply::Store => "[Store](#store)",
        Reply::Stores => "list of [Store](#store)",
        Reply::Scrub => "[Scrub](#scrub)",
        Reply::Snapshot => "[Snapshot](#snapshot)",
        Reply::Snapshots => "list of [Snapshot](#snapshot)",
        Reply::Export => "[Export](#export)",
        Reply::Stats => "[Stats](#stats)",
        Reply::Chunks => "[ChunkPage](#chunkpage)",
        Reply::Policy => "[Policy](#policy)",
    }
}

/// A Rust type as a reader of JSON sees it.
fn type_text(rust_type: &str) -> String {
    let inner = |prefix: &str| rust_type.strip_prefix(prefix).and_then(|t| t.strip_suffix('>'));
    if let Some(inner) = inner("Option<") {
        return format!("{} or null", type_text(inner));
    }
    if let Some(inner) = inner("Vec<") {
        return format!("list of {}", type_text(inner));
    }
    if OBJECTS.iter().any(|object| object.name == rust_type) {
        return format!("[{rust_type}](#{})", rust_type.to_lowercase());
    }
    match rust_type {
        "bool" => "boolean".into(),
        "u8" | "u32" | "u64" | "f64" => "number".into(),
        "Uuid" => "UUID".into(),
        _ => "string".into(),
    }
}

/// Breaks lines at spaces; lines after the first begin with `indent`.
pub(crate) fn wrapped(text: &str, columns: usize, indent: &str) -> String {
    let mut out = String::new();
    let mut column = indent.len();
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if !out.is_empty() && column + 1 + width > columns {
            out.push('\n');
            out.push_str(indent);
            column = indent.len();
        } else if !out.is_empty() {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out
}

/// `scripts/presnap_rpc.py`.
pub fn python_plugin() -> String {
    let mut table = String::new();
    for method in METHODS {
        put(&mut table, format_args!("    ({}, {}, [\n", py(method.name), py(method.summary)));
        let positional = |param: &&Param| method.command.positional.contains(&param.name);
        let place =
            |param: &Param| method.command.positional.iter().position(|name| *name == param.name);
        let mut first: Vec<_> = method.params.iter().filter(positional).collect();
        first.sort_by_key(|param| place(param));
        let rest = method.params.iter().filter(|param| !positional(param));
        for param in first.into_iter().chain(rest) {
            let (kind, values) = match param.kind {
                Kind::Flag => ("flag", None),
                Kind::Integer { .. } => ("int", None),
                Kind::Share => ("float", None),
                Kind::Text(_) => ("str", None),
                Kind::Choice(choices) => ("str", Some(choices)),
                Kind::List { .. } => ("list", None),
            };
            let values = values.map_or("None".into(), |values| {
                let values: Vec<_> = values.iter().map(|value| py(value)).collect();
                format!("[{}]", values.join(", "))
            });
            put(
                &mut table,
                format_args!(
                    "        ({}, {}, {}, {}, {values},\n         {}),\n",
                    py(param.name),
                    py(kind),
                    py_bool(positional(&param)),
                    py_bool(param.required),
                    py(&python_help(method, param)),
                ),
            );
        }
        table.push_str("    ]),\n");
    }
    include_str!("plugin_template.py").replace("    # @METHODS@\n", &table)
}

fn python_help(method: &Method, param: &Param) -> String {
    let default = match default_text(method, param) {
        _ if param.required => String::new(),
        text => format!("; {}{text}", if text.starts_with("one of") { "" } else { "default: " }),
    };
    let text = format!("{} ({}{default})", param.doc, kind_text(param.kind));
    // argparse formats help texts with %.
    text.replace('`', "").replace('%', "%%")
}

fn py_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// A Python string literal: the table's texts are plain, so only quotes and backslashes matter.
fn py(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked_in(path: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn rpc_md_is_what_the_table_says() {
        assert!(
            checked_in("docs/rpc.md") == markdown(),
            "docs/rpc.md is stale: presnap rpc --doc > docs/rpc.md"
        );
    }

    #[test]
    fn the_python_plugin_is_what_the_table_says() {
        assert!(
            checked_in("scripts/presnap_rpc.py") == python_plugin(),
            "scripts/presnap_rpc.py is stale: presnap rpc --plugin > scripts/presnap_rpc.py"
        );
    }

    #[test]
    fn every_link_in_rpc_md_has_its_heading() {
        let text = markdown();
        let headings: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .map(|line| line.trim_start_matches('#').trim().to_lowercase())
            .collect();
        for link in text.split("](#").skip(1) {
            let target = link.split(')').next().unwrap();
            assert!(headings.iter().any(|heading| heading == target), "{target}");
        }
    }

    #[test]
    fn a_method_s_help_has_all_its_parameters_and_fits_a_terminal() {
        for method in METHODS {
            let help = method_help(method);
            for param in method.params {
                assert!(help.contains(&format!("  {} (", param.name)), "{help}");
            }
        }
    }

    #[test]
    fn words_wrap_at_the_column() {
        assert_eq!(wrapped("aa bb cc", 5, ""), "aa bb\ncc");
        assert_eq!(wrapped("aa bb  cc", 6, "  "), "aa\n  bb\n  cc");
        assert_eq!(wrapped("long", 2, ""), "long");
        assert_eq!(wrapped("", 2, ""), "");
    }
}
