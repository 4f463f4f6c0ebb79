r"""Units around a value: 5 cm, $5, 5\text{ square units}, 50%, 90^\circ.

An answer may state a unit where the target has none, and the other way round.
Two known units that differ make two answers different; nothing is converted.
"""

import re

# Every spelling, plural or not, by what it means.
_SPELLINGS = {
  'mm': 'mm millimeter millimetre',
  'cm': 'cm centimeter centimetre',
  'm': 'm meter metre',
  'km': 'km kilometer kilometre',
  'inch': 'in inch inche',
  'ft': 'ft foot feet',
  'yd': 'yd yard',
  'mi': 'mi mile',
  'mg': 'mg milligram',
  'g': 'g gram gm',
  'kg': 'kg kilogram kilo',
  'lb': 'lb pound',
  'oz': 'oz ounce',
  'ms': 'ms millisecond',
  's': 's sec second',
  'min': 'min minute',
  'h': 'h hr hour',
  'day': 'day',
  'week': 'week wk',
  'month': 'month',
  'year': 'year yr',
  'ml': 'ml mL milliliter millilitre',
  'l': 'l L liter litre',
  'gallon': 'gal gallon',
  'N': 'N newton',
  'J': 'J joule',
  'kJ': 'kJ kilojoule',
  'W': 'W watt',
  'kW': 'kW kilowatt',
  'V': 'V volt',
  'A': 'ampere amp',
  'Hz': 'Hz hertz',
  'Pa': 'Pa pascal',
  'eV': 'eV electronvolt',
  'K': 'kelvin',
  'mol': 'mol mole',
  'mi/h': 'mph',
  'km/h': 'kph kmh kmph',
  'deg': 'deg degree',
  'rad': 'rad radian',
  'dollar': 'dollar usd buck',
  'euro': 'euro eur',
  'pound sterling': 'gbp',
  'rupee': 'rupee inr',
  'cent': 'cent',
  '%': 'percent percentage pct',
  'unit': 'unit',
}
_MEANING = {
  spelling: meaning
  for meaning, spellings in _SPELLINGS.items()
  for spelling in spellings.split()
}
_BARE = re.compile(r'[\d.,/+\-()\s]*')  # without any unit
_TURNED = re.compile(r'\\(?:sin|cos|tan|cot|sec|csc)')
_CURRENCY = {
  '$': 'dollar',
  '€': 'euro',
  '£': 'pound sterling',
  '¥': 'yen',
  '₹': 'rupee',
  '₩': 'won',
  '₽': 'ruble',
  '₪': 'shekel',
  '₫': 'dong',
  '₴': 'hryvnia',
  '¢': 'cent',
}
_CODES = {'US': 'dollar', 'EU': 'euro', 'GB': 'pound sterling', 'IN': 'rupee'}
_CODE = re.compile(r'(USD?|EUR|GBP|INR|Rs\.?)\s?(?=[\d.])')
# One letter is a unit only behind a space: 5 m is a length, 5m a product.
_LETTERS = 'mgshlLNJWV'
_KNOWN = '|'.join(sorted(_MEANING, key=len, reverse=True))
_POWER = r'(?:\^?\{?-?\d\}?)?'
_ONE = rf'(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{_KNOWN})(?:e?s)?\b{_POWER}'
_KNOWN_UNIT = re.compile(
  rf'(?:(?<=[\d}})!])|(?<=\\pi))(?:\s+|(?![{_LETTERS}](?![A-Za-z])))'
  rf'((?:/\s*|per\s+)?{_ONE}(?:\s*(?:/|\\cdot|\*|\s|-?\s*per)\s*{_ONE})*)$'
)
_TEXT_UNIT = re.compile(
  r'((?:\s*(?:/|per)?\s*\\text\s*\{(?:[^{}]|\{[^{}]*\})*\}'
  r'(?:\s*\^\{?-?\d\}?)?)+)$'
)
_DEGREES = re.compile(r'\s*\^\\circ\s*([CFK]|\\text\{\s*[CFK]\s*\})?$')
_ORDINAL = re.compile(
  r'(?<=\d)(?:st|nd|rd|th|\^\{(?:st|nd|rd|th|\\text\{(?:st|nd|rd|th)\})\})$'
)
# Words behind a number are what is counted: 5 red apples.
_COUNTED = re.compile(r'(?<=[\d}])\s*([A-Za-z]{3,}(?:[\s-]+[A-Za-z]+)*)$')
# Words that change the number they stand beside.
_CHANGING = frozenset(
  'not no nor never neither none isn aren wasn minus negative plus than least '
  'most over under above below except excluding without between sqrt root '
  'roots square squared cubed factorial half halves third thirds quarter '
  'quarters double doubled twice thrice triple hundred thousand million '
  'billion trillion hundreds thousands millions billions trillions dozen '
  'dozens power log ln exp sin cos tan cot sec csc pi infinity divided '
  'multiplied mod modulo base'.split()
)
# 'Anything but 5' and '5 times x', not 'but 5 are left' and '5 times a day'.
_PHRASE = re.compile(
  r'\b(?:all|any|every|no|any-?thing|every-?thing)\s+but\b'
  r'|\btimes\s+(?:(?!a\b)[a-z]\b|the\b|\d)',
  re.I,
)
# Words that state another number or a condition, if they stand in an answer.
_OTHER = frozenset(
  'or and zero one two three four five six seven eight nine ten eleven twelve '
  'if when where for'.split()
)


def split(text: str) -> tuple[str, str]:
  """The value and the unit of a tidy answer; '' for no unit.

  A unit that is not known is '?': something is counted.
  """
  if _BARE.fullmatch(text):  # most numbers; the rest is slower
    return text, ''
  for sign, meaning in _CURRENCY.items():
    if text.strip('+-').startswith(sign):
      return text.replace(sign, '', 1).strip(), meaning
    if text.endswith(sign):
      return text[:-1].strip(), meaning
  if code := _CODE.match(text):
    return text[code.end() :], _CODES.get(code[1][:2], '?')
  if ordinal := _ORDINAL.search(text):
    return text[: ordinal.start()], '?'
  if text.endswith('%'):
    return text[:-1].strip(), '%'
  has_command = '\\' in text
  if has_command and (found := _DEGREES.search(text)) and found.start():
    if not _TURNED.search(text):
      return text[: found.start()], 'deg'
  if (found := _KNOWN_UNIT.search(text)) and found.start():
    return text[: found.start()].strip(), _meaning(found[1])
  for pattern in (_TEXT_UNIT, _COUNTED) if has_command else (_COUNTED,):
    if (found := pattern.search(text)) and found.start():
      unit = found[1].replace('\\text', '')
      if is_harmless(unit):
        return text[: found.start()].strip(), _meaning(unit)
  return text, ''


def is_harmless(words: str, in_prose: bool = False) -> bool:
  """Whether words beside a number leave its value as it is.

  Args:
    words: before or behind the number.
    in_prose: they belong to a sentence, which may count other things too.
  """
  if not words or words.isspace():
    return True
  if _PHRASE.search(words):
    return False
  found = {w.lower() for w in re.findall(r'[A-Za-z]+', words)}
  # 'square' changes a number before it only if no unit follows.
  if re.search(r'\bsquare\s+[a-z]', words, re.IGNORECASE):
    found.discard('square')
  return not found & (_CHANGING if in_prose else _CHANGING | _OTHER)


def conflict(first: str, second: str) -> bool:
  """Whether two units are known and different."""
  return first != second and not {first, second} & {'', '?'}


def _meaning(unit: str) -> str:
  """One spelling of a unit, or '?' if a part of it is not known."""
  unit = re.sub(r'[{}^]', ' ', unit)
  unit = re.sub(r'\bper\b', '/', unit)
  powers = {'square': '2', 'sq': '2', 'cubic': '3', 'cu': '3'}
  parts, power = [], ''
  for word in re.findall(r'[A-Za-z%]+|-?\d|/', unit):
    if word in powers:
      power = powers[word]
      continue
    if word[-1].isdigit() or word == '/':
      parts.append(word)
      continue
    known = _MEANING.get(word) or _MEANING.get(word.lower())
    known = known or _MEANING.get(word.lower().rstrip('s'))
    if known is None:
      return '?'
    parts.append(known + power)
    power = ''
  return ''.join(parts) or '?'
