"""Prompts that people, other programs and attackers send, and whether a model draws by them or refuses."""

DRAWN = {
    "empty": "",
    "spaces": "   ",
    "words": "red heart",
    "unknown words": "an ultraviolet heart of 12 corners",
    "emoji": "\u2764\ufe0f\U0001f9d1\U0001f3fd\u200d\U0001f680",
    "chinese": "红心",
    "right to left": "قلب أحمر \u202eheart",
    "sql": "'; DROP TABLE images; --",
    "html": "<script>alert(1)</script>",
    "format": "%s %n {0} ${jndi:ldap://x}",
    "lines": "red\theart\nblue",
    "as long as can be": "red " * 1024,
}
REFUSED = {
    "10,000 characters": ("x" * 10_000, "expected at most 4,096 characters, found 10,000"),
    "NUL": ("red\0heart", "a control character, U+0000"),
    "bell": ("red\x07", "a control character, U+0007"),
    "escape": ("\x1b[31mred", "a control character, U+001B"),
    "C1": ("red\x85heart", "a control character, U+0085"),
}
