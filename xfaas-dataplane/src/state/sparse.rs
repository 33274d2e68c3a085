//! Which pages compaction evacuates: of each kind and class the sparsest, as many as its other pages have room for. Arithmetic only.

use super::alloc::{LISTS, PageFill};

/// Steps of fill that are told apart.
const FILLS: usize = 16;

/// How full the pages of each list are, and then which of them go.
pub(super) struct Survey {
    /// Pages of a list, by fill.
    pages: [[u32; FILLS]; LISTS],
    /// Pages below this fill go.
    below: [u8; LISTS],
    /// And so many of exactly this fill.
    rest: [u32; LISTS],
}

impl Default for Survey {
    fn default() -> Survey {
        Survey { pages: [[0; FILLS]; LISTS], below: [0; LISTS], rest: [0; LISTS] }
    }
}

fn step_of(fill: PageFill) -> usize {
    usize::from(fill.used) * FILLS / usize::from(fill.blocks).max(1)
}

impl Survey {
    /// Counts a page that is not full.
    pub fn note(&mut self, fill: PageFill) {
        self.pages[fill.list][step_of(fill)] += 1;
    }

    /// All pages are counted; `spare` says how many a list can do without.
    pub fn choose(&mut self, spare: impl Fn(usize) -> u32) {
        for (list, pages) in self.pages.iter().enumerate() {
            let mut left = spare(list);
            if left == 0 {
                continue;
            }
            let is_too_many = |count: &u32| {
                let fits = *count <= left;
                left -= if fits { *count } else { 0 };
                !fits
            };
            let below = pages.iter().position(is_too_many).unwrap_or(FILLS);
            self.below[list] = below as u8;
            self.rest[list] = if below == FILLS { 0 } else { left };
        }
    }

    /// True when a page of this fill goes; it is counted as gone.
    pub fn takes(&mut self, fill: PageFill) -> bool {
        let (step, below) = (step_of(fill), usize::from(self.below[fill.list]));
        if step == below && self.rest[fill.list] > 0 {
            self.rest[fill.list] -= 1;
            return true;
        }
        step < below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sparsest_pages_go_and_no_more_than_the_others_have_room_for() {
        let fill = |list, used| PageFill { list, used, blocks: 32 };
        let mut survey = Survey::default();
        for used in [31, 1, 20, 21, 0, 8, 20] {
            survey.note(fill(3, used));
        }
        survey.note(fill(4, 5));
        survey.choose(|list| if list == 3 { 4 } else { 0 });
        let taken: Vec<bool> = [31, 1, 20, 21, 0, 8, 20].map(|used| survey.takes(fill(3, used))).to_vec();
        assert_eq!(taken, [false, true, true, false, true, true, false]);
        assert!(!survey.takes(fill(4, 5)));
        assert!(!survey.takes(fill(9, 0)), "a list that can spare none");
    }
}
