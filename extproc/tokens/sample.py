"""Text made to break a way of cutting texts: what tokenizers treat specially, around every kind of cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORDS: Final = (
    "It's 3 o'clock, they'LL say; we've 12345 of 'em.  Two  spaces,   three\t\ttabs \n\n  new lines\r\n\r\nhere \n"
    "camelCaseWords HTTPServer snake_case kebab-case don't DON'T x=y+1; foo(bar[0]) == {'a': 1} # done!!!\n"
    "    indented code\n\tdef f(x):\n        return x ** 2\nA B C a b c I am A I\n\nIn the end the THE tHe\n"
    ";\nend.\nNext\n/path/to\nfile ▁under ▁ score <s> </s> <unk> [INST] a</s>b www.example.com/a?b=c&d=e x@example.com\n"
)
_WORLD: Final = (
    "Ärger über Straßen, naïve café coöperate e\u0301 a\u0308 ﬁ Ⅳ ½ ①\nÉcole\nñandú\nЭто проверка текста\nΑυτό είναι\n"  # noqa: RUF001 - meant so
    "这是一个测试。我们有3只猫\n日本語のテキスト カタカナ\n한국어 문장입니다\nهذا نص عربي\nहिन्दी पाठ\nภาษาไทย\n"  # noqa: RUF001 - meant so
    "emoji 👩\u200d👩\u200d👧 🇩🇪 🙂 a\u200bb\u00a0c\u3000d ...---___\n"
)


def text(tokens: Iterable[str]) -> str:
    """Return the sample, with these special tokens in it."""
    parts = [_WORDS, _WORLD]
    for token in tokens:
        parts += [token, "user\nHello there", token, " leading space", token, "\n", token, token, "tail "]
    return "".join([*parts, _WORDS, _WORLD])
