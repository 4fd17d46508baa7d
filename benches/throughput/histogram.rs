//! A histogram of the server's own, as its metrics show it, over a window.

/// How many observations were at most so large, by bound in rising order, over all cores. The last
/// bound is infinite.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    /// Reads the histogram `name` of the scrape `page`; none if it is not there.
    pub fn read(page: &str, name: &str) -> Option<Buckets> {
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(name).and_then(|l| l.strip_prefix("_bucket{"))
            else {
                continue;
            };
            let (labels, count) = rest.rsplit_once("} ")?;
            let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            // An exemplar may follow.
            let count: u64 = count.split(' ').next()?.parse().ok()?;
            match buckets.iter_mut().find(|(b, _)| *b == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        (!buckets.is_empty()).then_some(Buckets(buckets))
    }

    /// What has come since `before`.
    pub fn since(&self, before: &Buckets) -> Buckets {
        let earlier =
            |bound: f64| before.0.iter().find(|(b, _)| *b == bound).map_or(0, |(_, count)| *count);
        let grown = self.0.iter().map(|(bound, count)| (*bound, count - earlier(*bound)));
        Buckets(grown.collect())
    }

    /// The quantile `q`, in proportion between the bounds of its bucket, and the last finite bound
    /// if it is beyond; none of nothing.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (_, all) = *self.0.last()?;
        let wanted = all as f64 * q;
        let (mut low, mut below) = (0.0, 0);
        for (bound, count) in self.0.iter().copied() {
            if all > 0 && count as f64 >= wanted {
                if bound.is_infinite() {
                    return Some(low);
                }
                let part = (wanted - below as f64) / (count - below).max(1) as f64;
                return Some(low + (bound - low) * part);
            }
            (low, below) = (bound, count);
        }
        None
    }
}
