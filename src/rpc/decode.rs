//! Checks the parameters of a call against the table and types them.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::{METHOD_NOT_FOUND_CODE, RpcError};
use super::params::Params;
use super::schema::{
    BDEV_NAME_BYTES_MAX, Kind, Method, NAME_BYTES_MAX, NQN_BYTES_MAX, Param, TRTYPE_BYTES_MAX, Text,
};
use super::table::{METHODS, method};

/// Parameter text shown in a message at most; the rest is cut.
const SHOWN_CHARS_MAX: usize = 80;

/// Checks `params` (an object, or null for none) of a call of the method called `name`, fills in
/// defaults, and types the result.
///
/// # Errors
///
/// `-EINVAL` with a message that names the parameter and what it takes; JSON-RPC's own code for a
/// method that does not exist.
pub fn decode(name: &str, params: &Value) -> Result<Params, RpcError> {
    let Some(method) = method(name) else {
        let hint = nearest(name, METHODS.iter().map(|method| method.name))
            .map_or(String::new(), |near| format!("; did you mean {near}?"));
        return Err(RpcError {
            code: METHOD_NOT_FOUND_CODE,
            message: format!("presnap has no method {}{hint}", shown(name)),
        });
    };
    let checked = check(method, params)
        .map_err(|message| RpcError::invalid(format!("{}: {message}", method.name)))?;
    Params::from_checked(method.name, Value::Object(checked))
        .unwrap_or_else(|| unreachable!("{} is in the table and has no type", method.name))
}

fn check(method: &Method, params: &Value) -> Result<Map<String, Value>, String> {
    let empty = Map::new();
    let given = match params {
        Value::Null => &empty,
        Value::Object(map) => map,
        other => return Err(format!("parameters must be an object, not {}", type_name(other))),
    };
    if let Some(unknown) = given.keys().find(|key| method.param(key).is_none()) {
        return Err(unknown_parameter(method, unknown));
    }
    let mut checked = Map::new();
    for param in method.params {
        let value = match (given.get(param.name), param.default) {
            (Some(value), _) => check_value(param, value)
                .map_err(|message| format!("parameter {:?} {message}", param.name))?,
            (None, Some(json)) => {
                serde_json::from_str(json).expect("defaults in the table are JSON")
            }
            (None, None) if param.required => {
                return Err(format!("parameter {:?} is missing: {}", param.name, param.doc));
            }
            (None, None) => continue,
        };
        checked.insert(param.name.to_owned(), value);
    }
    if !method.one_of.is_empty() && !method.one_of.iter().any(|name| checked.contains_key(*name)) {
        return Err(format!("one of the parameters {} must be given", method.one_of.join(", ")));
    }
    Ok(checked)
}

fn unknown_parameter(method: &Method, unknown: &str) -> String {
    let known = method.params.iter().map(|param| param.name);
    let hint = match nearest(unknown, known.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("it takes {}", known.collect::<Vec<_>>().join(", ")),
    };
    format!("unknown parameter {}; {hint}", shown(unknown))
}

fn check_value(param: &Param, value: &Value) -> Result<Value, String> {
    let wrong_type = |wanted: &str| Err(format!("must be {wanted}, not {}", type_name(value)));
    match param.kind {
        Kind::Flag => match value {
            Value::Bool(_) => Ok(value.clone()),
            _ => wrong_type("true or false"),
        },
        Kind::Integer { unit, min, max, power_of_two } => {
            let Value::Number(number) = value else { return wrong_type("a whole number") };
            let in_bounds = number.as_u64().filter(|n| (min..=max).contains(n));
            let Some(n) = in_bounds else {
                return Err(format!(
                    "is {number}: must be a whole number from {min} to {max} ({unit})"
                ));
            };
            if power_of_two && !n.is_power_of_two() {
                let above = n.next_power_of_two();
                return Err(format!(
                    "is {n}: must be a power of two, such as {} or {above} ({unit})",
                    above / 2
                ));
            }
            Ok(value.clone())
        }
        Kind::Share => match value.as_f64() {
            Some(share) if (0.0..=1.0).contains(&share) => Ok(value.clone()),
            Some(_) => Err(format!("is {value}: must be a number from 0 to 1")),
            None => wrong_type("a number from 0 to 1"),
        },
        Kind::Text(text) => match value {
            Value::String(string) => check_text(text, string).map(Value::String),
            _ => wrong_type("a string"),
        },
        Kind::Choice(choices) => match value {
            Value::String(string) if choices.contains(&string.as_str()) => Ok(value.clone()),
            Value::String(string) => {
                Err(format!("is {}: must be one of {}", shown(string), choices.join(", ")))
            }
            _ => wrong_type("a string"),
        },
        Kind::List { item, count_max } => {
            let Value::Array(items) = value else { return wrong_type("a list of strings") };
            if items.is_empty() {
                return Err("is an empty list: name at least one, or leave it out".into());
            }
            if items.len() > count_max {
                return Err(format!("has {} entries: at most {count_max}", items.len()));
            }
            let mut checked = Vec::with_capacity(items.len());
            for (index, entry) in items.iter().enumerate() {
                let Value::String(string) = entry else {
                    return Err(format!(
                        "entry {index} must be a string, not {}",
                        type_name(entry)
                    ));
                };
                let string = check_text(item, string)
                    .map_err(|message| format!("entry {index} {message}"))?;
                checked.push(Value::String(string));
            }
            Ok(Value::Array(checked))
        }
    }
}

/// Checks a string; the answer is it in the form that the server uses.
fn check_text(text: Text, string: &str) -> Result<String, String> {
    if string.is_empty() {
        return Err("is an empty string".into());
    }
    let bytes_max = match text {
        Text::Name => NAME_BYTES_MAX,
        Text::Bdev => BDEV_NAME_BYTES_MAX,
        Text::Uuid => 36,
        Text::Nqn => NQN_BYTES_MAX,
        Text::Transport => TRTYPE_BYTES_MAX,
        Text::Word(bytes_max) => bytes_max,
    };
    if string.len() > bytes_max {
        return Err(format!("has {} bytes: at most {bytes_max}", string.len()));
    }
    let complaint = match text {
        Text::Name => name_complaint(string),
        Text::Bdev => string.chars().any(char::is_control).then_some("has a control character"),
        Text::Uuid => uuid_complaint(string),
        Text::Nqn => nqn_complaint(string),
        Text::Transport => {
            let word = string.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            (!word).then_some("must be letters, digits and '_' only, such as TCP")
        }
        Text::Word(_) => {
            let word = string.chars().all(|c| c.is_ascii_graphic());
            (!word).then_some("must be printable ASCII without spaces")
        }
    };
    match (complaint, text) {
        (Some(complaint), _) => Err(format!("is {}: {complaint}", shown(string))),
        (None, Text::Uuid) => Ok(string.to_ascii_lowercase()),
        (None, Text::Transport) => Ok(string.to_ascii_uppercase()),
        (None, _) => Ok(string.to_owned()),
    }
}

fn name_complaint(string: &str) -> Option<&'static str> {
    if string.contains(['@', '/']) {
        return Some(
            "'@' and '/' are not allowed in names; snapshots are named by volume and name",
        );
    }
    if !string.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Some("names start with a letter or a digit");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (!string.chars().all(allowed)).then_some("names are made of letters, digits, '.', '_' and '-'")
}

fn uuid_complaint(string: &str) -> Option<&'static str> {
    const FORM: &str = "must be a UUID such as 6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    match Uuid::try_parse(string) {
        Ok(uuid) if uuid.is_nil() => Some("the nil UUID names nothing"),
        Ok(_) if string.len() == 36 => None,
        _ => Some(FORM),
    }
}

/// The form that SPDK asks for: `nqn.yyyy-mm.reverse.domain:name`.
fn nqn_complaint(string: &str) -> Option<&'static str> {
    const FORM: &str = "must be an NQN such as nqn.2016-06.io.spdk:snapshot1";
    if !string.chars().all(|c| c.is_ascii_graphic()) {
        return Some("NQNs are printable ASCII without spaces");
    }
    let well_formed = string.strip_prefix("nqn.").is_some_and(|rest| {
        let bytes = rest.as_bytes();
        let digits = |range: std::ops::Range<usize>| {
            bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
        };
        let date = digits(0..4) && bytes.get(4) == Some(&b'-') && digits(5..7);
        let domain = rest.get(7..).and_then(|tail| tail.strip_prefix('.'));
        date && domain.and_then(|tail| tail.split_once(':')).is_some_and(|(domain, name)| {
            let label = |label: &str| {
                label.starts_with(|c: char| c.is_ascii_alphabetic())
                    && label.ends_with(|c: char| c.is_ascii_alphanumeric())
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            };
            domain.split('.').all(label) && !name.is_empty()
        })
    });
    (!well_formed).then_some(FORM)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A string of the caller in a message: quoted, escaped and not too long.
fn shown(string: &str) -> String {
    match string.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &string[..end]),
        None => format!("{string:?}"),
    }
}

/// The known word that `word` is most likely a slip of.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > NAME_BYTES_MAX {
        return None;
    }
    known
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes.
fn distance(left: &str, right: &str) -> usize {
    let right = right.as_bytes();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substitute = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
