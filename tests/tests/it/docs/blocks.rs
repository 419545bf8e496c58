//! The fenced code blocks of a page.

/// How a block that is not run is marked, on the line before it.
const MARK: &str = "<!-- not run: ";

/// A fenced code block.
pub struct Block {
    /// What follows the opening fence, such as `sh`.
    pub language: String,
    /// The number of its first line.
    pub line: usize,
    /// Why it is not run.
    pub not_run: Option<String>,
    /// The text between the fences.
    pub text: String,
}

/// Returns the blocks of a page in order. A mark belongs to the block that follows it without text in between.
pub fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut not_run) = (Vec::new(), None);
    let mut lines = page.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if let Some(reason) = line.strip_prefix(MARK) {
            not_run = Some(reason.trim_end_matches("-->").trim().to_owned());
        } else if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```").collect();
            let (language, text) = (language.to_owned(), text.join("\n"));
            blocks.push(Block { language, line: number + 1, not_run: not_run.take(), text });
        } else if !line.trim().is_empty() {
            not_run = None;
        }
    }
    blocks
}

#[test]
fn a_mark_belongs_to_the_next_block_only() {
    let page = "a\n<!-- not run: needs AWS -->\n\n```sh\none\ntwo\n```\n\n```\nthree\n```\n<!-- not run: x -->\ntext\n```sh\n```\n";
    let found: Vec<_> =
        blocks(page).into_iter().map(|block| (block.language, block.line, block.not_run, block.text)).collect();
    let block = |language: &str, line, not_run: Option<&str>, text: &str| {
        (language.to_owned(), line, not_run.map(str::to_owned), text.to_owned())
    };
    assert_eq!(
        found,
        [block("sh", 5, Some("needs AWS"), "one\ntwo"), block("", 10, None, "three"), block("sh", 15, None, "")]
    );
}
