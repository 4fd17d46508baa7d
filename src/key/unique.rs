//! Whether a template's keys are unlike any other: not only whether node, core and sequence are in it, but whether they
//! can be read back out of a key. `{core}{seq}` cannot: `1`, `12` and `11`, `2` render alike.
//!
//! No value holds a `/`, so each path component is looked at alone. In it one reads from both ends: text and parts of
//! fixed width are as long as they are, and a number ends where text begins that is no digit. If one part is left in the
//! middle, what is left is that part; if more are left, nothing says where one ends. A field's value is the client's, so
//! `{field:/a}-{node}` counts as that too.

use super::Part;
use super::parse::KeyError;

/// How far one part can be told from what is beside it.
#[derive(Clone, Copy)]
enum Atom<'t> {
    Text(&'t str),
    Fixed,
    Number,
    /// One of a few words, see `KeyOf::ext`.
    Word,
    Free,
}

pub(super) fn check(parts: &[Part], node_is_random: bool) -> Result<(), KeyError> {
    let is_clock = |part: &Part| matches!(part, Part::UnixNanos | Part::UnixMs);
    let mut missing: Vec<String> = [Part::Node, Part::Core, Part::Seq]
        .iter()
        .filter(|id| !parts.contains(id))
        .map(ToString::to_string)
        .collect();
    let mut why = "";
    if !node_is_random && !parts.iter().any(is_clock) {
        missing.push(Part::UnixNanos.to_string());
        why =
            ", for with a fixed NODE_ID only the clock tells one start of the process from another";
    }
    if !missing.is_empty() {
        return Err(KeyError::NotUnique { missing: missing.join(" and "), why });
    }
    let components = components(parts, node_is_random);
    let told = |is_it: &dyn Fn(&Part) -> bool| {
        // Told once is enough.
        let mut blurred = None;
        for component in &components {
            let middle = component.middle();
            for (i, part) in component.parts.iter().enumerate().filter(|(_, part)| is_it(part)) {
                match component.neighbour(i, &middle) {
                    None => return Ok(()),
                    Some(neighbour) => blurred = Some((part.to_string(), neighbour.to_string())),
                }
            }
        }
        let (id, neighbour) = blurred.expect("it is in the template, as was found above");
        Err(KeyError::RunTogether { id, neighbour })
    };
    for id in [Part::Node, Part::Core, Part::Seq] {
        told(&|part| *part == id)?;
    }
    if node_is_random { Ok(()) } else { told(&is_clock) }
}

/// What is between two slashes.
#[derive(Default)]
struct Component<'t> {
    atoms: Vec<Atom<'t>>,
    /// Beside `atoms`.
    parts: Vec<&'t Part>,
}

fn components(parts: &[Part], node_is_random: bool) -> Vec<Component<'_>> {
    let mut components = vec![Component::default()];
    for part in parts {
        let atom = match part {
            Part::Text(text) => {
                for (i, text) in text.split('/').enumerate() {
                    if i > 0 {
                        components.push(Component::default());
                    }
                    if !text.is_empty() {
                        components.last_mut().expect("never empty").push(Atom::Text(text), part);
                    }
                }
                continue;
            }
            // 64 bits in hex.
            Part::Node if node_is_random => Atom::Fixed,
            Part::Time(_) | Part::Hash(_) => Atom::Fixed,
            Part::UnixNanos | Part::UnixMs | Part::Core | Part::Seq | Part::Count => Atom::Number,
            Part::Ext => Atom::Word,
            Part::Node | Part::Version | Part::Field { .. } => Atom::Free,
        };
        components.last_mut().expect("never empty").push(atom, part);
    }
    components
}

impl<'t> Component<'t> {
    fn push(&mut self, atom: Atom<'t>, part: &'t Part) {
        self.atoms.push(atom);
        self.parts.push(part);
    }

    /// What is left between the parts that can be read from the left and those from the right.
    fn middle(&self) -> std::ops::Range<usize> {
        let atoms = &self.atoms;
        let mut left = 0;
        while left < atoms.len()
            && is_told(atoms[left], atoms.get(left + 1), |text| text.chars().next())
        {
            left += 1;
        }
        let mut right = atoms.len();
        while right > left {
            let before = right.checked_sub(2).map(|at| &atoms[at]);
            let last = |text: &str| text.chars().next_back();
            let told = match atoms[right - 1] {
                // Read from its end, a word is told by the mark before it.
                Atom::Word => matches!(before, Some(Atom::Text(text))
                    if last(text).is_some_and(|char| !char.is_alphanumeric())),
                atom => is_told(atom, before, last),
            };
            if !told {
                break;
            }
            right -= 1;
        }
        left..right
    }

    /// What part `i` cannot be told from.
    fn neighbour(&self, i: usize, middle: &std::ops::Range<usize>) -> Option<&'t Part> {
        if !middle.contains(&i) || middle.len() == 1 {
            return None;
        }
        let is_value = |&at: &usize| at != i && !matches!(self.atoms[at], Atom::Text(_));
        // A middle of two or more begins and ends with what is no text, for text is always told.
        middle.clone().filter(is_value).min_by_key(|at| at.abs_diff(i)).map(|at| self.parts[at])
    }
}

/// Whether an atom's end is known, reading towards `next`, of whose text `edge` is the character that comes first.
fn is_told(atom: Atom<'_>, next: Option<&Atom<'_>>, edge: impl Fn(&str) -> Option<char>) -> bool {
    match (atom, next) {
        (Atom::Text(_) | Atom::Fixed, _) | (Atom::Number, None) => true,
        (Atom::Number, Some(Atom::Text(text))) => !edge(text).is_some_and(|c| c.is_ascii_digit()),
        _ => false,
    }
}
