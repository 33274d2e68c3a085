//! Which function comes next, and what its answer must be.

use crate::load::Random;
use std::str::FromStr;

/// Functions of one run.
pub const FUNCTIONS_MAX: usize = 16;
const WEIGHT_MAX: u32 = 1_000_000;

/// What the output of a good answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Anything,
    /// The payload that was sent.
    Echo,
    /// A decimal number.
    Number,
    /// A number that each request adds 1 to: never the same one twice, and in the end as many as were acknowledged.
    Counter,
    /// The number of the `Counter` function's session: never less than what was acknowledged before the request left.
    Read,
}

const CHECKS: [(&str, Check); 5] =
    [("any", Check::Anything), ("echo", Check::Echo), ("number", Check::Number), ("counter", Check::Counter), ("read", Check::Read)];

/// A function, how often it is asked for beside the others, and what it must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixFunction {
    pub name: String,
    pub weight: u32,
    pub check: Check,
}

impl FromStr for MixFunction {
    type Err = String;

    /// `NAME[:WEIGHT[:CHECK]]`; the sample functions know their checks.
    fn from_str(text: &str) -> Result<MixFunction, String> {
        let mut parts = text.splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(is_name) {
            return Err(format!("{name:?} is no function's name: 1-64 of A-Z a-z 0-9 _ . -"));
        }
        let weight = match parts.next() {
            None => 1,
            Some(text) => text
                .parse()
                .ok()
                .filter(|weight| (1..=WEIGHT_MAX).contains(weight))
                .ok_or_else(|| format!("the weight {text:?} is no whole number in 1..={WEIGHT_MAX}"))?,
        };
        let check = match parts.next() {
            None => check_of_sample(name),
            Some(text) => CHECKS
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, check)| *check)
                .ok_or_else(|| format!("there is no check {text:?}: choose one of {}", CHECKS.map(|(name, _)| name).join(", ")))?,
        };
        Ok(MixFunction { name: name.to_owned(), weight, check })
    }
}

fn check_of_sample(name: &str) -> Check {
    match name {
        "echo" => Check::Echo,
        "counter-read" => Check::Read,
        "counter-rmw" => Check::Number,
        "counter-rmw-linear" => Check::Counter,
        _ => Check::Anything,
    }
}

/// What is wrong with a mix, if anything. A weak writer beside a checked counter may take its updates back.
pub fn fault_of_mix(functions: &[MixFunction]) -> Option<String> {
    let counters: Vec<&str> =
        functions.iter().filter(|function| function.check == Check::Counter).map(|function| &*function.name).collect();
    if functions.is_empty() || functions.len() > FUNCTIONS_MAX {
        return Some(format!("give 1 to {FUNCTIONS_MAX} functions"));
    }
    if let Some(twice) = functions.iter().enumerate().find(|(i, function)| functions[..*i].iter().any(|other| other.name == function.name))
    {
        return Some(format!("{} is given twice", twice.1.name));
    }
    if let [first, second, ..] = counters[..] {
        return Some(format!("{first} and {second} are both checked as the session's counter: say `{second}:1:number`"));
    }
    let weak = functions.iter().any(|function| function.name == "counter-rmw");
    match counters.first() {
        Some(counter) if weak => Some(format!(
            "counter-rmw writes the number that {counter} is checked by, and may take its updates back: leave one out, or say `{counter}:1:number`"
        )),
        _ => None,
    }
}

/// Chooses by weight.
pub(super) struct FunctionChoice {
    /// Sum of the weights up to and with each function.
    sums: Vec<u32>,
}

impl FunctionChoice {
    /// `functions`: at least one.
    pub(super) fn new(functions: &[MixFunction]) -> FunctionChoice {
        let mut sum = 0;
        FunctionChoice {
            sums: functions
                .iter()
                .map(|function| {
                    sum += function.weight;
                    sum
                })
                .collect(),
        }
    }

    /// The index of the next function.
    pub(super) fn next(&self, random: &mut Random) -> usize {
        match self.sums[..] {
            [_] => 0,
            _ => {
                let drawn = random.below(*self.sums.last().expect("there is a function") as usize) as u32;
                self.sums.partition_point(|sum| *sum <= drawn)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(texts: &[&str]) -> Vec<MixFunction> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_function_is_read_with_weight_and_check() {
        let function = |name: &str, weight, check| MixFunction { name: name.to_owned(), weight, check };
        assert_eq!("cart".parse(), Ok(function("cart", 1, Check::Anything)));
        assert_eq!("counter-rmw-linear:3".parse(), Ok(function("counter-rmw-linear", 3, Check::Counter)));
        assert_eq!("counter-read:7".parse(), Ok(function("counter-read", 7, Check::Read)));
        assert_eq!("counter-rmw-linear:3:number".parse(), Ok(function("counter-rmw-linear", 3, Check::Number)));
    }

    #[test]
    fn what_is_no_function_is_refused_with_the_reason() {
        for (text, reason) in [("", "name"), ("a/b", "name"), ("a:0", "weight"), ("a:x", "weight"), ("a:1:b", "any, echo, number")] {
            let error = text.parse::<MixFunction>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_mix_in_which_a_counter_cannot_be_checked_is_refused() {
        assert_eq!(fault_of_mix(&mix(&["echo", "counter-read:9", "counter-rmw-linear"])), None);
        assert!(fault_of_mix(&[]).is_some());
        assert!(fault_of_mix(&mix(&["echo", "echo"])).unwrap().contains("twice"));
        assert!(fault_of_mix(&mix(&["counter-rmw", "counter-rmw-linear"])).unwrap().contains("take its updates back"));
        assert_eq!(fault_of_mix(&mix(&["counter-rmw", "counter-rmw-linear:1:number"])), None);
        assert!(fault_of_mix(&mix(&["a:1:counter", "b:1:counter"])).unwrap().contains("b:1:number"));
    }

    #[test]
    fn functions_are_chosen_by_weight() {
        let (choice, mut random) = (FunctionChoice::new(&mix(&["a:1", "b:2", "c:7"])), Random::new(5));
        let mut counts = [0_f64; 3];
        (0..100_000).for_each(|_| counts[choice.next(&mut random)] += 1.0);
        for (count, expected) in counts.iter().zip([10_000.0, 20_000.0, 70_000.0]) {
            assert!((count / expected - 1.0).abs() < 0.03, "{counts:?}");
        }
    }
}
