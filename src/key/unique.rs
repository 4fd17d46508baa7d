//! Whether a template's keys are unique. Node, core and sequence must not only be in it; it must be
//! possible to read them back from a key. With `{core}{seq}` it is not: `1`, `12` and `11`, `2`
//! render alike.
//!
//! No value contains a `/`, so each path component is checked separately, from both ends. Text and
//! parts of fixed width have a known length, and a number ends where text begins that is not a
//! digit. If a single part is left in the middle, it is whatever is left. If more are left, nothing
//! tells where one ends. A field's value comes from the client, so this also applies to
//! `{field:/a}-{node}`.

use super::Part;
use super::parse::KeyError;

/// How the extent of a part can be determined.
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
        why = ", because with a fixed NODE_ID only the clock differs after a restart";
    }
    if !missing.is_empty() {
        return Err(KeyError::NotUnique { missing: missing.join(" and "), why });
    }
    let components = components(parts, node_is_random);
    let told = |is_it: &dyn Fn(&Part) -> bool| {
        // Readable in one place is enough.
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

/// The parts between two slashes.
#[derive(Default)]
struct Component<'t> {
    atoms: Vec<Atom<'t>>,
    /// Parallel to `atoms`.
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
            Part::Node | Part::Request { .. } | Part::Field { .. } => Atom::Free,
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

    /// The atoms left between those that can be read from the left and those from the right.
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
                // Read from its end, a word ends at the punctuation before it.
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

    /// The part that part `i` runs together with.
    fn neighbour(&self, i: usize, middle: &std::ops::Range<usize>) -> Option<&'t Part> {
        if !middle.contains(&i) || middle.len() == 1 {
            return None;
        }
        let is_value = |&at: &usize| at != i && !matches!(self.atoms[at], Atom::Text(_));
        // A middle of two or more begins and ends with something other than text, which is always
        // readable.
        middle.clone().filter(is_value).min_by_key(|at| at.abs_diff(i)).map(|at| self.parts[at])
    }
}

/// Whether an atom's end is known when reading towards `next`; `edge` is the first character of its
/// text in that direction.
fn is_told(atom: Atom<'_>, next: Option<&Atom<'_>>, edge: impl Fn(&str) -> Option<char>) -> bool {
    match (atom, next) {
        (Atom::Text(_) | Atom::Fixed, _) | (Atom::Number, None) => true,
        (Atom::Number, Some(Atom::Text(text))) => !edge(text).is_some_and(|c| c.is_ascii_digit()),
        _ => false,
    }
}
