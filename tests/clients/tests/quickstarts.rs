//! What the quick starts say of themselves: whole programs, none longer than they promise. That they compile is a test of the page's own.

const PAGE: &str = include_str!("../../../docs/quickstarts.md");

const MOST_LINES: usize = 20;

#[test]
fn each_is_a_whole_program_of_at_most_20_lines_that_drains_what_it_opens() {
    assert!(PAGE.contains(&format!("at most {MOST_LINES} lines")));
    let programs: Vec<_> =
        PAGE.split("```rust,no_run\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(programs.len(), PAGE.matches("\n## ").count(), "one for each heading");
    for program in programs {
        let lines: Vec<_> = program.lines().collect();
        assert!(lines.len() <= MOST_LINES, "{} lines:\n{program}", lines.len());
        assert!(!lines.iter().any(|line| line.starts_with("# ")), "nothing is hidden:\n{program}");
        assert!(program.contains("async fn main()") && program.contains("run("), "{program}");
    }
}
