//! The few shapes that the figures are drawn with.

/// Lines that only guide the eye.
pub(super) const GRID: &str = "#ccc";
pub(super) const BLUE: &str = "#3070b0";
pub(super) const ORANGE: &str = "#d08030";
pub(super) const GREEN: &str = "#408050";

/// A place, in pixels from the left and from the top.
pub(super) type Point = (f64, f64);

/// Which end of a text its place is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A figure on a white ground.
pub(super) struct Svg(String);

impl Svg {
    /// Returns an empty figure.
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        ))
    }

    /// Draws a line.
    pub(super) fn line(&mut self, (x1, y1): Point, (x2, y2): Point, colour: &str) {
        self.add(&format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"));
    }

    /// Draws a thick line through these points.
    pub(super) fn path(&mut self, points: &[Point], colour: &str) {
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.add(&format!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"));
    }

    /// Draws a dot.
    pub(super) fn dot(&mut self, (x, y): Point, colour: &str) {
        self.add(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
    }

    /// Fills a rectangle.
    pub(super) fn rect(&mut self, (x, y): Point, (width, height): (f64, f64), colour: &str) {
        self.add(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        ));
    }

    /// Writes a text.
    pub(super) fn text(&mut self, (x, y): Point, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.add(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
    }

    /// Writes a heading.
    pub(super) fn heading(&mut self, (x, y): Point, text: &str) {
        let text = escape(text);
        self.add(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" font-weight=\"bold\">{text}</text>"));
    }

    /// Returns the file's text.
    pub(super) fn finish(self) -> String {
        self.0 + "</svg>\n"
    }

    fn add(&mut self, shape: &str) {
        self.0.push_str(shape);
        self.0.push('\n');
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
