//! Progress of something slow: a bar on a terminal, a line now and then where there is none.

use std::io::{self, IsTerminal};

use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Without a terminal, a line is printed whenever this many percent more are done.
const LINE_STEP: u64 = 20;

/// One slow thing. Everything goes to stderr, so that stdout stays for results.
pub(crate) struct Progress {
    label: String,
    kind: Kind,
}

enum Kind {
    Bar(ProgressBar),
    /// The percentage in the last line printed.
    Lines {
        printed: u64,
    },
    /// Told to someone whenever a percent more is done.
    Told {
        tell: fn(u64, u64) -> io::Result<()>,
        told: u64,
    },
}

// === impl Progress ===

impl Progress {
    /// Starts showing `label`.
    pub(crate) fn new(label: impl Into<String>) -> Self {
        let label = label.into();
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner_style());
            bar.set_message(label.clone());
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
            return Self { label, kind: Kind::Bar(bar) };
        }
        eprintln!("{label} …");
        Self { label, kind: Kind::Lines { printed: 0 } }
    }

    /// Shows nothing here: tells it to someone else, such as a supervising parent.
    pub(crate) fn told(tell: fn(u64, u64) -> io::Result<()>) -> Self {
        Self { label: String::new(), kind: Kind::Told { tell, told: 0 } }
    }

    /// `done` of `total` bytes; a total of 0 is unknown.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        match &mut self.kind {
            Kind::Bar(bar) => {
                if total > 0 && bar.length() != Some(total) {
                    bar.set_style(bar_style());
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            Kind::Lines { printed } => {
                let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
                if percent >= *printed + LINE_STEP {
                    *printed = percent - percent % LINE_STEP;
                    eprintln!("{}: {percent} % of {}", self.label, DecimalBytes(total));
                }
            }
            Kind::Told { tell, told } => {
                let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
                if percent > *told {
                    *told = percent;
                    let _ = tell(done, total); // who doesn't listen misses nothing
                }
            }
        }
    }

    /// Ends the progress and leaves nothing of the bar behind.
    pub(crate) fn finish(self) {
        if let Kind::Bar(bar) = self.kind {
            bar.finish_and_clear();
        }
    }
}

fn bar_style() -> ProgressStyle {
    style("{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}")
}

fn spinner_style() -> ProgressStyle {
    style("{spinner} {msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}
