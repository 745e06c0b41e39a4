#!/bin/sh
# Makes DejaVuSans-subset.ttf: the characters that labels, units and numbers use, without hints, features and kerning.
# Run in this folder: sh make.sh /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
# Last run with fontTools 4.68.0 and DejaVu Sans 2.37 of Debian's fonts-dejavu-core 2.37-6. Licence: LICENSE beside it.
set -eu
latin=U+20-7E,U+A0-17F
greek_and_cyrillic=U+391-3C9,U+400-45F
punctuation=U+2010-2016,U+2018-201E,U+2020-2022,U+2026,U+2030,U+2032,U+2033,U+20AC
raised_and_lowered=U+2070-209C
mathematics=U+2190-2194,U+2200-2213,U+221A,U+221D,U+221E,U+2225-222B,U+2248,U+2260,U+2261,U+2264,U+2265,U+226A,U+226B,U+2295,U+2297,U+22C5,U+27E8,U+27E9
replacement=U+FFFD
pyftsubset "$1" --output-file=DejaVuSans-subset.ttf --notdef-outline --no-hinting --layout-features= \
  --unicodes="$latin,$greek_and_cyrillic,$punctuation,$raised_and_lowered,$mathematics,$replacement" \
  --drop-tables+=GPOS,GSUB,GDEF,kern,MATH,FFTM --name-IDs=0,1,2,3,4,5,6,13,14
