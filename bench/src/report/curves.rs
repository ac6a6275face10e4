//! The curves: what one operation costs the more there is of something, on a logarithmic scale.

use serde_json::Value;

use super::svg::{Anchor, BLUE, GREEN, GRID, ORANGE, Point, Svg};

/// The metric that is drawn.
const COST: &str = "cpu_us";
/// What grows, by its name among the metrics, and the heading of the panel that has its curves.
const PANELS: [(&str, &str); 2] = [
    ("clients", "CPU us for a call or a delivery, by clients connected"),
    ("rows", "CPU us for a durable event, by rows in the journal"),
];
const COLOURS: [&str; 3] = [BLUE, ORANGE, GREEN];

/// Size of what lies between the axes of a panel, and the room around it, in pixels.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;
/// Least distance of two lines of text.
const LINE: f64 = 14.0;

/// The same load at growing scales.
struct Curve {
    name: String,
    points: Vec<Cost>,
}

/// What one operation costs at one scale.
struct Cost {
    scale: f64,
    median: f64,
    min: f64,
    max: f64,
}

/// Returns the figure of a subject as SVG; none where nothing grows.
pub(super) fn curves(report: &Value) -> Option<String> {
    let cases: Vec<_> = report["cases"].as_array().into_iter().flatten().collect();
    let panels = PANELS.map(|(axis, heading)| {
        let curves: Vec<_> = cases.iter().map(|case| Curve::of(case, axis)).filter(|it| it.points.len() > 1).collect();
        (heading, curves)
    });
    let panels: Vec<_> = panels.into_iter().filter(|(_, curves)| !curves.is_empty()).collect();
    if panels.is_empty() {
        return None;
    }
    let step = LEFT + WIDTH + RIGHT;
    let lefts = std::iter::successors(Some(LEFT), |left| Some(left + step));
    let mut svg = Svg::new(panels.iter().map(|_| step).sum(), TOP + HEIGHT + BOTTOM);
    for (left, (heading, curves)) in lefts.zip(&panels) {
        svg.heading((left, 18.0), heading);
        Panel::around(left, curves).draw(curves, &mut svg);
    }
    let settings = &report["settings"];
    let note = format!(
        "medians of {} repetitions of {} s, with the least and the most; all processes together",
        settings["repetitions"], settings["seconds"]
    );
    svg.text((LEFT, TOP + HEIGHT + BOTTOM - 8.0), Anchor::Start, &note);
    Some(svg.finish())
}

impl Curve {
    /// Returns what a case measured where so much of `axis` was there.
    fn of(case: &Value, axis: &str) -> Self {
        let sides = case["peers"].as_array().into_iter().flatten().chain([&case["own"]]);
        let cost = |side: &Value| {
            let cost = |part| side["metrics"][COST][part].as_f64();
            let scale = side["metrics"][axis]["median"].as_f64()?;
            Some(Cost { scale, median: cost("median")?, min: cost("min")?, max: cost("max")? })
        };
        Self { name: case["name"].as_str().unwrap_or_default().to_owned(), points: sides.filter_map(cost).collect() }
    }
}

/// Where things are in a panel.
struct Panel {
    left: f64,
    /// Powers of ten at the ends of the horizontal axis.
    decades: (f64, f64),
    /// Distance of two lines of the vertical axis, and its end.
    step: f64,
    most: f64,
}

impl Panel {
    /// Returns a panel that has room for these curves.
    fn around(left: f64, curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let decades = points().map(|point| point.scale.log10());
        let (first, last) = decades.fold((f64::MAX, f64::MIN), |(min, max), it| (min.min(it), max.max(it)));
        let step = step(points().map(|point| point.max).fold(0.0, f64::max));
        let most = points().map(|point| point.max).fold(0.0, f64::max);
        Self { left, decades: (first.floor(), last.ceil()), step, most: (most / step).ceil() * step }
    }

    fn place(&self, scale: f64, cost: f64) -> Point {
        let (first, last) = self.decades;
        (self.left + (scale.log10() - first) / (last - first) * WIDTH, TOP + HEIGHT - cost / self.most * HEIGHT)
    }

    fn draw(&self, curves: &[Curve], svg: &mut Svg) {
        let from = |start: f64, step: f64| std::iter::successors(Some(start), move |at| Some(at + step));
        for cost in from(0.0, self.step).take_while(|cost| *cost <= self.most * 1.001) {
            let y = TOP + HEIGHT - cost / self.most * HEIGHT;
            svg.line((self.left, y), (self.left + WIDTH, y), GRID);
            svg.text((self.left - 6.0, y + 4.0), Anchor::End, &cost.to_string());
        }
        for decade in from(self.decades.0, 1.0).take_while(|decade| *decade <= self.decades.1) {
            let (x, _) = self.place(10_f64.powf(decade), 0.0);
            svg.text((x, TOP + HEIGHT + 16.0), Anchor::Middle, &grouped(decade));
        }
        let mut ends = Vec::new();
        for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
            let middle = |point: &Cost| self.place(point.scale, point.median);
            svg.path(&curve.points.iter().map(middle).collect::<Vec<_>>(), colour);
            for point in &curve.points {
                svg.line(self.place(point.scale, point.min), self.place(point.scale, point.max), colour);
                svg.dot(middle(point), colour);
            }
            ends.extend(curve.points.last().map(|point| (middle(point), &curve.name)));
        }
        // The names stand beside the ends, the lowest where its curve ends, and none over another.
        ends.sort_by(|((_, a), _), ((_, b), _)| b.total_cmp(a));
        let mut below = f64::MAX;
        for ((x, y), name) in ends {
            below = y.min(below - LINE);
            svg.text((x + 8.0, below + 4.0), Anchor::Start, name);
        }
    }
}

/// Returns a round distance of lines, of which five or fewer reach `most`.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 5.0).log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power).find(|step| step * 5.0 >= most).unwrap_or(10.0 * power)
}

/// Returns a power of ten with its digits in groups.
fn grouped(decade: f64) -> String {
    let digits = format!("{:.0}", 10_f64.powf(decade));
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_case_with_more_and_more_clients_is_a_curve_and_another_is_none() {
        let side = |clients: f64, cost: f64| {
            let summary = |value: f64| json!({"median": value, "min": value / 2.0, "max": value * 2.0});
            json!({"metrics": {"clients": summary(clients), "cpu_us": summary(cost)}})
        };
        let other = json!({"name": "other", "peers": [{"metrics": {"cpu_us": {"median": 1.0}}}], "own": {}});
        assert!(curves(&json!({"cases": [other]})).is_none());
        let case = json!({"name": "calls & more", "peers": [side(1.0, 5.0), side(10.0, 5.0)], "own": side(1e3, 7.5)});
        let svg = curves(&json!({"cases": [other, case], "settings": {"repetitions": 3, "seconds": 1.0}})).unwrap();
        assert!(svg.contains("calls &amp; more") && !svg.contains("other"), "{svg}");
        assert!(svg.contains(">1,000<") && svg.contains(">15<"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        // One panel, whose vertical axis ends at 15: half of it is at half of its height.
        assert!(svg.contains(&format!("cx=\"{:.1}\" cy=\"{:.1}\"", LEFT + WIDTH, TOP + HEIGHT / 2.0)), "{svg}");
    }

    #[test]
    fn lines_have_round_distances() {
        let steps: Vec<_> = [0.9, 5.0, 5.1, 12.0, 26.0, 60.0].map(step).into();
        assert_eq!(steps, [0.2, 1.0, 2.0, 5.0, 10.0, 20.0]);
    }
}
