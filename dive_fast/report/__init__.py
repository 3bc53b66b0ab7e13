"""Pictures and pages for people who would rather look than read: self-contained HTML, no scripts, no network."""
