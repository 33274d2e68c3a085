//! `cart`: a shopping cart in several keys of the session. `POST /f/cart/add?item=tea&n=2`, `POST /f/cart/remove?item=tea[&n=1]`, and
//! `GET /f/cart` answer with the cart as JSON: `{"items":[{"item":"tea","n":2}],"total":2}`.
//! Key `item:<name>` holds a count, key `items` the names, one a line. A change opens the item's section first and that of `items`
//! second, always in this order, so concurrent changes lose nothing and never deadlock; the listing reads weakly and never waits.
#![cfg_attr(target_arch = "wasm32", no_std)]

use xfaas_guest::{
    Decimal, Error, Input, KeyBuffer, Mode, TextBuffer, input, parse_u64, query_value, set_output, state, with_scratch, write_state,
};

/// Bytes of an item's name, 1..=32 of `[A-Za-z0-9_.-]`, so that it needs no escaping in JSON.
const ITEM_BYTES_MAX: usize = 32;
/// Bytes of all names with their line ends: some 60 to 1000 items.
const NAMES_BYTES_MAX: usize = 2_048;
/// Bytes of the JSON: at most 24 around each name, and the shortest name with its line end has 2.
const JSON_BYTES_MAX: usize = NAMES_BYTES_MAX / 2 * (24 + 1) + 64;
/// Of one item at most.
const COUNT_MAX: u64 = 1_000_000;

/// Codes a client sees as `guest_code`.
const NO_SUCH_ACTION: i32 = 1;
const BAD_ITEM: i32 = 2;
const BAD_COUNT: i32 = 3;

fn cart() -> Result<(), i32> {
    let (mut path, mut query) = ([0; 16], [0; 256]);
    let path = input(Input::Path, &mut path).map_err(|_| NO_SUCH_ACTION)?;
    let query = input(Input::Query, &mut query).map_err(|_| BAD_ITEM)?;
    match path {
        b"" | b"/" => {}
        b"/add" | b"/remove" => {
            let mut method = [0; 8];
            if input(Input::Method, &mut method) != Ok(b"POST") {
                return Err(NO_SUCH_ACTION);
            }
            let item = query_value(query, b"item").filter(|item| is_item(item)).ok_or(BAD_ITEM)?;
            let n = query_value(query, b"n").map(|n| parse_u64(n).filter(|n| (1..=COUNT_MAX).contains(n)).ok_or(BAD_COUNT)).transpose()?;
            match path {
                b"/add" => change(item, |count| count.checked_add(n.unwrap_or(1)).filter(|count| *count <= COUNT_MAX))?,
                _ => change(item, |count| Some(n.map_or(0, |n| count.saturating_sub(n))))?,
            }
        }
        _ => return Err(NO_SUCH_ACTION),
    }
    with_scratch(JSON_BYTES_MAX, list).and_then(|result| result).map_err(Error::code)
}

fn is_item(name: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=ITEM_BYTES_MAX).contains(&name.len()) && name.iter().all(is_plain)
}

/// Gives the item the count that `next` makes of the present one (0 = not in the cart); `None` is refused as a bad count.
fn change(item: &[u8], next: impl FnOnce(u64) -> Option<u64>) -> Result<(), i32> {
    let key = KeyBuffer::new(b"item:", item).map_err(Error::code)?;
    let mut text = [0; Decimal::BYTES_MAX];
    let old = state(key.as_c_str(), &mut text, Mode::Strong).map_err(Error::code)?.and_then(parse_u64).unwrap_or(0);
    let new = next(old).ok_or(BAD_COUNT)?;
    let new_text = Decimal::new(new);
    // If the call ends between the two writes, a name without a count is left, which is not listed and does no harm; a count
    // without its name would be lost from sight. So the name goes in first and out last, all inside the item's section.
    if new > 0 {
        if old == 0 {
            set_listed(item, true).map_err(Error::code)?;
        }
        return write_state(key.as_c_str(), new_text.as_bytes(), Mode::Strong).map_err(Error::code);
    }
    // A weak write does not end the section: that happens at the end of the call, after the name is out.
    write_state(key.as_c_str(), new_text.as_bytes(), Mode::Weak).map_err(Error::code)?;
    set_listed(item, false).map_err(Error::code)
}

/// Puts the name into `items` or takes it out. Errors: `OverLimit` when the cart holds too many names.
fn set_listed(item: &[u8], listed: bool) -> Result<(), Error> {
    let (mut old, mut new) = ([0; NAMES_BYTES_MAX], [0; NAMES_BYTES_MAX]);
    let old = state(c"items", &mut old, Mode::Strong)?.unwrap_or(b"");
    let mut names = TextBuffer::new(&mut new);
    for name in lines(old).filter(|name| *name != item).chain(listed.then_some(item)) {
        names.push(name)?;
        names.push(b"\n")?;
    }
    write_state(c"items", names.as_bytes(), Mode::Strong)
}

fn lines(names: &[u8]) -> impl Iterator<Item = &[u8]> {
    names.split(|byte| *byte == b'\n').filter(|name| !name.is_empty())
}

/// Sets the cart as the output.
fn list(buffer: &mut [u8]) -> Result<(), Error> {
    let mut names = [0; NAMES_BYTES_MAX];
    let names = state(c"items", &mut names, Mode::Weak)?.unwrap_or(b"");
    let mut json = TextBuffer::new(buffer);
    let (mut total, mut separator) = (0, &b""[..]);
    json.push(b"{\"items\":[")?;
    for name in lines(names) {
        let key = KeyBuffer::new(b"item:", name)?;
        let mut text = [0; Decimal::BYTES_MAX];
        let count = state(key.as_c_str(), &mut text, Mode::Weak)?.and_then(parse_u64).unwrap_or(0);
        if count == 0 {
            continue;
        }
        for part in [separator, b"{\"item\":\"", name, b"\",\"n\":", Decimal::new(count).as_bytes(), b"}"] {
            json.push(part)?;
        }
        total += count;
        separator = b",";
    }
    json.push(b"],\"total\":")?;
    json.push_u64(total)?;
    json.push(b"}")?;
    set_output(json.as_bytes())
}

xfaas_guest::handler!(cart);

#[cfg(test)]
mod tests {
    use super::*;
    use xfaas_guest::fake;

    fn call(method: &str, path: &str, query: &str) -> (i32, String) {
        fake::set_input(Input::Method, method.as_bytes());
        fake::set_input(Input::Path, path.as_bytes());
        fake::set_input(Input::Query, query.as_bytes());
        let code = handle();
        (code, String::from_utf8(fake::take_output()).expect("JSON is text"))
    }

    #[test]
    fn items_are_added_removed_and_listed() {
        fake::reset();
        assert_eq!(call("GET", "", ""), (0, r#"{"items":[],"total":0}"#.into()));
        assert_eq!(call("POST", "/add", "item=tea&n=2"), (0, r#"{"items":[{"item":"tea","n":2}],"total":2}"#.into()));
        assert_eq!(call("POST", "/add", "item=milk").0, 0);
        assert_eq!(call("POST", "/add", "item=tea").1, r#"{"items":[{"item":"tea","n":3},{"item":"milk","n":1}],"total":4}"#);
        assert_eq!(call("POST", "/remove", "item=tea&n=2").1, r#"{"items":[{"item":"tea","n":1},{"item":"milk","n":1}],"total":2}"#);
        assert_eq!(call("POST", "/remove", "item=tea").1, r#"{"items":[{"item":"milk","n":1}],"total":1}"#);
        assert_eq!(fake::value("items"), Some(b"milk\n".to_vec()));
        assert_eq!(call("POST", "/add", "item=tea").1, r#"{"items":[{"item":"milk","n":1},{"item":"tea","n":1}],"total":2}"#);
    }

    #[test]
    fn what_is_not_an_order_is_refused_and_changes_nothing() {
        fake::reset();
        for (method, path, query, code) in [
            ("GET", "/add", "item=tea", NO_SUCH_ACTION),
            ("POST", "/steal", "item=tea", NO_SUCH_ACTION),
            ("POST", "/add", "n=1", BAD_ITEM),
            ("POST", "/add", "item=", BAD_ITEM),
            ("POST", "/add", "item=%22", BAD_ITEM),
            ("POST", "/add", "item=tea&n=0", BAD_COUNT),
            ("POST", "/add", "item=tea&n=1000001", BAD_COUNT),
            ("POST", "/add", "item=tea&n=x", BAD_COUNT),
        ] {
            assert_eq!(call(method, path, query), (code, String::new()), "{method} {path}?{query}");
        }
        assert_eq!((fake::value("items"), fake::value("item:tea")), (None, None));
    }

    #[test]
    fn a_full_cart_refuses_new_names_and_still_lists() {
        fake::reset();
        let refused = (0..2_000).map(|i| call("POST", "/add", &format!("item={i:x}&n=1000000")).0).position(|code| code != 0);
        let listed = call("GET", "", "").1;
        assert_eq!(listed.matches("\"item\"").count(), refused.expect("the cart has a limit"));
        assert!(listed.len() < JSON_BYTES_MAX);
    }
}
