"""Which language a text is in, by its script or by its most common words."""

from __future__ import annotations

import re
from collections import Counter

SCRIPTS = {"ja": re.compile("[\u3040-\u30ff]"), "ko": re.compile("[\uac00-\ud7af]")}
HAN = re.compile("[\u4e00-\u9fff]")

STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to a in is it that was for on with as are be this at by an or not from "
        "but have has had were which you he she they we his her their its if can will would there "
        "what when who all no so than then do does how into been your my me i",
        "de": "der die das und ist nicht ein eine einen einem einer zu mit auf für von im den dem "
        "des sich auch es ich wir sie er als an werden wird hat haben war oder aber wie bei nur "
        "noch nach dass aus über um durch",
        "fr": "le la les des et est un une du dans que qui pour pas sur avec ce cette il elle nous "
        "vous ils sont au aux par plus ne se ou mais son sa ses leur été comme en d l qu",
        "es": "el la los las de y es un una en que por con no se su para del al lo como más pero "
        "sus este esta son fue ha muy o si entre cuando también ya",
        "it": "il lo la i gli le di e è un una che in per con non si da del della dei al alla come "
        "più ma sono anche questo questa ha nel nella o se l",
        "pt": "o a os as de e é um uma que em não por com para do da dos das no na se mais como "
        "mas ao foi são seu sua também ou ser muito à",
        "nl": "de het een en van is in op te dat die niet met voor zijn er aan ook als bij door "
        "naar maar om uit wordt werd hij ze wij deze dit heeft hebben of",
        "ru": "и в не на что с он как это по но из у за от к его для так же все она "  # noqa: RUF001
        "они мы вы был была было были я о то бы",  # noqa: RUF001
    }.items()
}

MIN_SHARE = 0.08
"""Of a text's words that must be stop words; plain prose has 30 to 50 %, code and lists few."""


def detect_language(found: list[str]) -> str:
    """Return the language of a text's words as ISO 639-1, `unknown` where none is likely.

    Japanese, Korean and Chinese are known by their script, which is to be a third of the text; en,
    de, fr, es, it, pt, nl and ru by the share of their stop words (as in Grefenstette 1995,
    "Comparing two language identification schemes").
    """
    joined = "".join(found)
    num_cjk = sum(len(pattern.findall(joined)) for pattern in (*SCRIPTS.values(), HAN))
    if 3 * num_cjk > len(joined):
        return next((name for name, script in SCRIPTS.items() if script.search(joined)), "zh")
    met = Counter(found)
    counts = {
        language: sum(met[word] for word in met.keys() & stop)
        for language, stop in STOP_WORDS.items()
    }
    best = max(counts, key=lambda language: counts[language])
    return best if counts[best] > MIN_SHARE * len(found) else "unknown"
