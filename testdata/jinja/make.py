"""Writes cases.json: snippets of chat templates, and what they are in Jinja2 as transformers runs it.

    python3 make.py     # needs jinja2 3.1, nothing else

The environment is that of transformers 5 (`_compile_jinja_template`): the immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop
controls, its `tojson`, `raise_exception`, `dict` and `namespace`. A case has `text`, or `error`: true where it is refused.
"""
import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).resolve().parent

# Numbers, text, lists and dictionaries, as JSON.
VARIABLES = {
    'i': 7, 'n': -3, 'f': 2.5, 'zero': 0, 'big': 12345678901234567890, 'tiny': 1e-7, 'huge': 1e16, 'yes': True, 'nothing': None,
    's': 'Hello World', 'e': '', 'u': ' Zoë\u00a0日本語 😀\n', 'q': 'it\'s "fine"\\ \t', 'lines': 'a\n\n  b\r\nc\x0bd\n',
    'l': [3, 1, 2], 'mixed': [1, 'a', None, True, 2.0, [1], {'k': 'v'}], 'words': ['pear', 'Apple', 'fig', 'apple'], 'none': [],
    'd': {'z': 1, 'a': [True, None], 'items': 'own', 'nested': {'y': 'é<&>"\''}},
    'chat': [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': 'Hi', 'name': 'Ada'},
        {'role': 'assistant', 'content': '', 'tool_calls': [{'function': {'name': 'f', 'arguments': {'b': 1, 'a': 'x'}}}]},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': 'one'}, {'type': 'text', 'text': 'two'}]},
    ],
}

CASES = r'''
# How values are written.
{{ i }} {{ f }} {{ tiny }} {{ huge }} {{ big }} {{ 1e22 }} {{ 123456789012345.678 }} {{ 1e-5 }} {{ 0.0001 }} {{ 1.0 }} {{ -0.0 }} {{ 1_000 }} {{ 0x1f }} {{ 0b11 }} {{ 0o17 }}
{{ 1e308 * 10 }} {{ -1e308 * 10 }}
{{ yes }} {{ nothing }} {{ l }} {{ mixed }} {{ d }}
{{ (1,) }} {{ () }} {{ (1, 'a') }} {{ 1, 2 }} {{ [(1, 2)] }}
{{ q }} {{ [q] }} {{ [u] }} {{ ["it's"] }} {{ ['\x00\x7f\u200b\u00e9\U0001f600'] }}
{{ d.items() }} {{ d.keys() }} {{ d.values() }} {{ range(3) }} {{ range(1, 9, 3) }}
{{ [undefined_name] }} {{ {'a': undefined_name} }}
{{ namespace(a=1, b='x') }}
{{ undefined_name }}|{{ d.missing }}|{{ l[9] }}|{{ d['missing'] }}
{{ 'a' ~ 1 ~ 2.0 ~ none ~ true ~ [1] ~ {'a': none} ~ undefined_name }}
# Literals.
{{ 'a' 'b' "c" }} {{ 'tab\there' }} {{ '\d\.' }} {{ '\x41\u0042\103' }} {{ "q'" }} {{ 'a\
b' }}
{{ {'a': {'b': 1}}['a']['b'] }} {{ {1: 'x', true: 'y'} }} {{ [1, 2,] }} {{ {'a': 1,} }}
{{ {'a': 1} == {'a': 1.0} }} {{ (1, 2) == [1, 2] }} {{ 1 == true }} {{ '1' == 1 }} {{ none == false }} {{ undefined_name == none }}
# Operators.
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 3 ** 2 }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ 1 ~ 2 + 3 }} {{ -i }} {{ +f }} {{ not i }} {{ not e }} {{ true + 1 }}
{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }} {{ 'a' * -1 }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + (2,) }}
{{ 'a' + none }}
{{ 'a' + undefined_name }}
{{ undefined_name + 'a' }}
{{ none + 1 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ -'a' }}
{{ '%s and %s' % ('a', 1) }} {{ '%d%%' % 5 }} {{ '%05.1f|%-5s|%5s|%x|%r' % (2.25, 'a', 'b', 255, 'q') }} {{ '%(k)s' % {'k': 'v'} }} {{ '%s' % [1] }} {{ '%s' % undefined_name }} {{ '%+d % d' % (3, 4) }} {{ '%e %g' % (12345.678, 0.00001) }}
{{ '%s %s' % 'a' }}
{{ '%s' % ('a', 'b') }}
{{ '%d' % 'a' }}
{{ 1 < 2 }} {{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 <= 1.0 }} {{ 2 > 1 }} {{ 2 >= 3 }} {{ true < 2 }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ undefined_name < 1 }}
{{ [1] < (1,) }}
{{ 'a' in 'abc' }} {{ 'x' not in 'abc' }} {{ 1 in l }} {{ 'z' in d }} {{ 'a' in undefined_name }} {{ 1.0 in l }} {{ 'a' in ('a', 'b') }} {{ 3 in range(5) }} {{ 'z' in d.keys() }}
{{ 'a' in none }}
{{ none in 'abc' }}
{{ 1 in 'abc' }}
{{ 1 in 5 }}
{{ [1] in {} }}
{{ e or 'default' }} {{ s and 'x' }} {{ none or 0 or [] }} {{ 1 and 2 and 3 }} {{ not none and not e }} {{ 0 or undefined_name or 'y' }}
{{ 'yes' if i else 'no' }} {{ 'yes' if e }}| {{ 1 if false else 2 if true else 3 }}
{{ ('a' if e) is defined }}
# Attributes, items and slices.
{{ d.z }} {{ d['z'] }} {{ d.nested.y }} {{ d.nested['y'] }} {{ l.0 }} {{ l[-1] }} {{ chat[0].role }} {{ chat.3.content.0.text }} {{ s[0] }} {{ s[-1] }} {{ s.0 }}
{{ d.items is defined }} {{ d['items'] }} {{ d.items is string }} {{ d.get('items') }} {{ d.get is callable }}
{{ d.get('z') }} {{ d.get('nope') }} {{ d.get('nope', 'x') }} {{ d.get('nope').foo }}
{{ undefined_name.a }}
{{ undefined_name['a'] }}
{{ d.missing.a }}
{{ d.missing['a'] }}
{{ none.a }}|{{ none['a'] }}|{{ i.a }}|{{ i['a'] }}|{{ s.nope }}|{{ l.nope }}|{{ l['a'] }}|{{ l[none] }}
{{ none.a.b }}
{{ s.nope() }}
{{ none() }}
{{ undefined_name() }}
{{ s() }}
{{ l[0:2] }} {{ l[::-1] }} {{ l[1:] }} {{ l[:-1] }} {{ l[5:] }} {{ l[::2] }} {{ l[-2:] }} {{ l[2:0:-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[-5:] }} {{ s[:100] }} {{ (1, 2, 3)[1:] }} {{ u[1:4] }} {{ l[none:2] }}
{{ nothing[1:] }}
{{ undefined_name[1:] }}
{{ d[1:] }}
{{ l[::0] }}
{{ l['a':] }}
{{ s.__class__ }}
{{ s.__class__.__mro__ }}
{{ l.append(1) }}
{{ d.update({'a': 1}) }}
{{ d.pop('z') }}
{{ l.append is defined }} {{ d.pop is defined }}
# Methods of text.
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ 'hELLO wORLD'.capitalize() }} {{ "they're bill's".title() }} {{ s.swapcase() }} {{ 'ß'.upper() }} {{ 'ß'.capitalize() }}
[{{ '  x '.strip() }}] [{{ '  x '.lstrip() }}] [{{ '  x '.rstrip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'abcba'.strip('ab') }}] [{{ u.strip() }}] [{{ '\x1c x'.strip() }}] {{ 'a'.strip(none) }}
{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ ' a b c '.split(none, 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'abc'.split('x')[-1] }} {{ 'a-b'.split(sep='-', maxsplit=1) }}
{{ 'a'.split('') }}
{{ 'a'.split(1) }}
{{ lines.splitlines() }} {{ lines.splitlines(true) }} {{ ''.splitlines() }} {{ 'a\n'.splitlines() }}
{{ s.startswith('Hello') }} {{ s.endswith('World') }} {{ s.startswith(('x', 'He')) }} {{ s.startswith('World', 6) }} {{ s.endswith('') }}
{{ s.startswith(['x']) }}
{{ s.startswith(none) }}
{{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ 'aaa'.replace('', '-') }} {{ 'a'.replace('a', '') }}
{{ s.find('o') }} {{ s.find('o', 5) }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ s.index('W') }} {{ s.count('l') }} {{ 'aaaa'.count('aa') }} {{ 'abc'.count('') }} {{ u.find('日') }} {{ 'é'.find('') }}
{{ s.index('zz') }}
{{ 'abc'.removeprefix('a').removesuffix('c') }} {{ 'abc'.removeprefix('x') }} {{ 'a.b.c'.partition('.') }} {{ 'a.b.c'.rpartition('.') }} {{ 'abc'.partition('.') }}
{{ '-'.join(['a', 'b']) }} {{ ''.join('abc') }} {{ ','.join(d) }} {{ ', '.join(words|map('upper')) }}
{{ ','.join([1]) }}
{{ ','.join(none) }}
{{ '12'.isdigit() }} {{ ''.isdigit() }} {{ '1a'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'ab1'.isalnum() }} {{ ' '.isspace() }} {{ 'Ab'.isupper() }} {{ 'AB1'.isupper() }} {{ 'ab'.islower() }} {{ '1'.islower() }} {{ 'Ab Cd'.istitle() }} {{ 'é'.isascii() }} {{ '1'.isnumeric() }} {{ '1'.isdecimal() }} {{ 'a\n'.isprintable() }}
[{{ 'ab'.center(6) }}] [{{ 'ab'.center(5, '*') }}] [{{ 'ab'.ljust(4, '.') }}] [{{ 'ab'.rjust(4) }}] {{ '-5'.zfill(4) }} {{ '5'.zfill(3) }} [{{ 'a\tb'.expandtabs(4) }}]
{{ '{} {}'.format('a', 1) }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}{y[k]}{{}}'.format(x=1, y={'k': 2}) }} {{ '{:>5}|{:<4}|{:^5}|{:05d}|{:.2f}|{:,}|{!r}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 'q') }} {{ '{:x} {:#x} {:+} {:e} {:%} {:g}'.format(255, 255, 3, 1234.5, 0.25, 1e10) }}
{{ '{}'.format() }}
# Methods of lists and dictionaries.
{{ l.count(1) }} {{ l.index(2) }} {{ (1, 2, 1).count(1) }} {{ l.copy() }} {{ d.copy() == d }} {{ 'z' in d.copy() }} {{ 2.0.is_integer() }} {{ dict(a=1, b=2) }} {{ dict([('x', 1)], y=2) }} {{ dict({'a': 1}, a=2) }} {{ dict.fromkeys(['a', 'b'], 0) }}
{{ l.index(99) }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for v in d.values() %}{{ v }}{% endfor %}
{{ d.items()|list }} {{ d.keys()|list }} {{ d|list }} {{ d|items|list }} {{ d|length }} {{ d.items()|length }}
# Loops.
{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ', ' if not loop.last }}{% endfor %}
{% for x in l %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.depth }};{% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}
{% for m in chat if m.role == 'assistant' %}{{ loop.index }}{{ loop.length }}{% else %}none{% endfor %}
{% for m in chat if m.role == 'robot' %}{{ m }}{% else %}no robots{% endfor %}
{% for x in none %}{% endfor %}text
{% for x in nothing %}{% endfor %}text
{% for x in 5 %}{% endfor %}
{% for x in undefined_name %}x{% else %}empty{% endfor %}
{% for c in 'añb' %}[{{ c }}]{% endfor %}{% for p in chat[1].content %}[{{ p.text }}]{% endfor %}{% for p in chat[3].content %}[{{ p.text }}]{% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}
{% for x in l recursive %}{{ loop.depth }}{% endfor %}
{% for x in l %}{{ loop(l) }}{% endfor %}
{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}{{ loop }}
{% for x in range(3) %}{{ x }}{% endfor %}{% for x in range(5, 0, -2) %}{{ x }}{% endfor %}{% for i in l|reverse %}{{ i }}{% endfor %}
{% for x in l|sort if x > 1 %}{{ x }}{% endfor %}
{{ range(1000000) }}
{{ range(0, 1, 0) }}
# Scopes.
{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% for i in l %}{{ x }}{% set x = x + i %}{{ x }};{% endfor %}{{ x }}
{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }} {{ ns.missing }}|{{ ns['x'] }}
{% if true %}{% set x = 5 %}{% endif %}{{ x }}{% if false %}{% set y = 5 %}{% endif %}{{ y }}{% if false %}{% set i = 5 %}{% endif %}{{ i }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}
{% set x %}text {{ i }}{% endset %}{{ x }}{% set y | upper | trim %} abc {% endset %}{{ y }}|{{ x is string }}
{% set d.x = 1 %}
{% set undefined_name.x = 1 %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% set x = 1 %}{% with %}{% set x = 2 %}{{ x }}{% endwith %}{{ x }}
{% filter upper %}abc {{ s }}{% endfilter %}{% filter replace('a', 'b') | trim %} aaa {% endfilter %}
{% set a, b = [1] %}
# Macros.
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c='z') }}{{ m(a=5) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}
{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro wrap(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call wrap('b') %}text {{ i }}{% endcall %}
{% macro each(l) %}{% for x in l %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(x) each(l) %}[{{ x }}]{% endcall %}
{% macro m() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ m() }}{% for x in [9] %}{{ m() }}{% endfor %}
{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{{ x }}{{ m.name }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}
{% set text = m() if m is defined else 'no' %}{{ text }}{% macro m() %}yes{% endmacro %}
{% macro m() %} x {% endmacro %}{{ m()|trim }}{{ m() ~ 'y' }}{{ m() is string }}
{{ caller() }}
# Filters.
{{ s|upper }} {{ s|lower }} {{ 'foo bar-baz (qux'|title }} {{ 'FOO bar'|capitalize }} [{{ ' x '|trim }}] [{{ 'xax'|trim('x') }}] {{ 5|string ~ 1 }} {{ none|string }} {{ none|upper }} {{ [1]|trim }}
{{ l|length }} {{ s|length }} {{ d|count }} {{ e|length }} {{ undefined_name|length }}
{{ none|length }}
{{ 5|length }}
{{ l|map('string')|length }}
{{ l|first }} {{ l|last }} {{ s|first }} {{ s|last }} {{ none_list|first }}|{{ []|first }}|{{ []|last }} {{ d|first }}
{{ none|first }}
{{ l|join(', ') }} {{ mixed|join('|') }} {{ 'abc'|join('-') }} {{ chat|join(',', attribute='role') }} {{ []|join }} {{ l|join }}
{{ none|join(',') }}
{{ l|sort }} {{ l|sort(reverse=true) }} {{ words|sort }} {{ words|sort(case_sensitive=true) }} {{ chat|sort(attribute='role')|map(attribute='role')|list }} {{ words|sort(true) }} {{ d|sort }}
{{ mixed|sort }}
{{ none|sort }}
{{ d|dictsort }} {{ {'b': 1, 'A': 2}|dictsort }} {{ {'b': 1, 'A': 2}|dictsort(true) }} {{ {'b': 1, 'A': 2}|dictsort(false, 'value') }} {{ {'b': 1, 'A': 2}|dictsort(by='value', reverse=true) }}
{{ words|unique|list }} {{ words|unique(true)|list }} {{ [1, 1.0, true, 2]|unique|list }}
{{ l|sum }} {{ [1.5, 2]|sum }} {{ chat|sum(attribute='missing', start=0) }}
{{ [{'x': 1}, {'x': 2}]|sum(attribute='x') }} {{ [[1], [2]]|sum(start=[]) }}
{{ ['a']|sum }}
{{ l|min }} {{ l|max }} {{ words|min }} {{ words|max }} {{ []|max }}| {{ words|max(case_sensitive=true) }} {{ chat|min(attribute='role') }}
{{ l|map('string')|list }} {{ chat|map(attribute='role')|list }} {{ chat|map(attribute='name', default='-')|join }} {{ words|map('upper')|join(' ') }} {{ chat|map(attribute='content.0')|list }} {{ words|map('replace', 'p', 'b')|list }}
{{ chat|selectattr('role', 'equalto', 'user')|list }} {{ chat|selectattr('name')|map(attribute='role')|list }} {{ chat|rejectattr('name', 'defined')|list|length }} {{ chat|selectattr('role', 'in', ['user', 'system'])|list|length }} {{ chat|selectattr('role', '==', 'user')|first }}
{{ l|select('odd')|list }} {{ l|reject('gt', 1)|list }} {{ [0, 1, '', 'a', none]|select|list }} {{ [0, 1]|reject|list }} {{ l|select('greaterthan', 1)|list }} {{ l|select('divisibleby', 3)|list }}
{{ 'yes' if []|select else 'no' }} {{ 'yes' if chat|selectattr('role', 'eq', 'x')|list else 'no' }}
{% set g = l|map('string') %}{{ g|list }}{{ g|list }}
{{ l|map('nope')|list }}
{{ nothing|map('upper')|list }} {{ nothing|selectattr('role')|list }} {{ zero|select|list }} {{ 'yes' if 5|map('upper') else 'no' }} {{ 'yes' if nothing|reject else 'no' }}
{{ 5|map('upper')|list }}
{{ nothing|unique|list }}
{{ '%s' % [] }} {{ 'a' % [] }} {{ 'a' % d }} {{ 'a' % undefined_name }}
{{ 'a' % none }}
{{ 2.5 is even }} {{ 2.0 is even }} {{ 4.0 is divisibleby 2 }} {{ i.real }} {{ f.imag }}
{{ chat|groupby('role')|map(attribute='grouper')|list }}{% for role, items in chat|groupby('role') %}{{ role }}:{{ items|length }};{% endfor %}{% for g in chat|groupby('role') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}
{{ l|batch(2)|list }} {{ l|batch(2, 0)|list }} {{ l|slice(2)|list }} {{ l|slice(2, 'x')|list }}
{{ l|list }} {{ s|list }} {{ l|reverse|list }} {{ s|reverse }} {{ (1, 2)|list }}
{{ none|list }}
{{ undefined_name|default('x') }} {{ e|default('x') }}| {{ e|default('x', true) }} {{ none|default('x') }} {{ none|d('x', true) }} {{ d.missing|default(5) }} {{ undefined_name|default }}|
{{ '42'|int }} {{ ' 42 '|int }} {{ 'x'|int }} {{ 'x'|int(-1) }} {{ 3.9|int }} {{ '3.9'|int }} {{ none|int }} {{ true|int }} {{ 'ff'|int(0, 16) }} {{ '0x1f'|int(base=16) }} {{ '1_000'|int }} {{ [1]|int }}
{{ '4.5'|float }} {{ 'x'|float }} {{ 3|float }} {{ 'inf'|float }} {{ '1e3'|float }} {{ none|float(1.5) }}
{{ undefined_name|int }}
{{ 2.5|round }} {{ 3.5|round }} {{ 2.567|round(2) }} {{ 2.1|round(method='ceil') }} {{ 2.9|round(0, 'floor') }} {{ 5|round }} {{ 1234|round(-2) }} {{ 2.675|round(2) }} {{ -2.5|round }} {{ -3|abs }} {{ 2.5|abs }}
{{ 'a\nb\n\nc'|indent }}| {{ 'a\nb'|indent(2, true) }}| {{ 'a\n\nb'|indent(2, blank=true) }}| {{ 'a\nb'|indent('> ', true) }}| [{{ 'a\n'|indent(2) }}] [{{ ''|indent }}] [{{ '\n'|indent(1) }}] {{ 'a\nb'|indent(width=1, first=false) }}
{{ 1|indent }}
{{ s|replace('l', 'L') }} {{ s|replace('l', 'L', 1) }} {{ 11|replace(1, 2) }} {{ [1, 2]|replace('1', 'x') }}
{{ s|truncate(8) }} {{ s|truncate(5, true) }} {{ s|truncate(9, true, '..', 0) }} {{ 'short'|truncate(3) }} {{ 'a b c d e f g h i'|truncate(9) }}
{{ s|wordcount }} {{ 'a b&c/d é'|urlencode }} {{ {'a b': 'c&'}|urlencode }} [{{ 'x'|center(5) }}] {{ 'it'|pprint }} {{ [1, 'a']|pprint }} {{ 1000|filesizeformat }} {{ 1500000|filesizeformat }} {{ 1|filesizeformat }} {{ 2048|filesizeformat(true) }}
{{ '%s-%s'|format('a', 1) }} {{ '%(a)s'|format(a=1) }} {{ d|attr('z') }}|{{ s|attr('upper') is defined }}
{{ '<a>'|e }} {{ '<a>'|escape ~ '<b>' }} {{ '<a>'|safe ~ '<b>' }} {{ '<a>'|safe }} {{ ('<a>'|safe) + '<b>' }} {{ '"\''|e }} {{ '<'|e|e }} {{ '<'|e|forceescape }} {{ '<a>'|safe|upper ~ '&' }} {{ '<'|safe|string ~ '>' }}
{{ d|tojson }} {{ mixed|tojson }} {{ u|tojson }} {{ u|tojson(ensure_ascii=true) }} {{ f|tojson }} {{ tiny|tojson }} {{ huge|tojson }} {{ big|tojson }} {{ nothing|tojson }} {{ yes|tojson }} {{ '\x7f\x01</script>'|tojson }} {{ (1, 2)|tojson }} {{ {1: 2, none: 3, true: 4, 1.5: 5}|tojson }} {{ (1e308 * 10)|tojson }}
{{ d|tojson(indent=2) }} {{ []|tojson(indent=2) }} {{ {}|tojson(indent=2) }} {{ l|tojson(indent=0) }} {{ l|tojson(indent='--') }} {{ d|tojson(separators=(',', ':')) }} {{ d|tojson(sort_keys=true) }} {{ d|tojson(false, 4) }} {{ l|tojson(indent=1, separators=(';', '=')) }}
{{ undefined_name|tojson }}
{{ [undefined_name]|tojson }}
{{ d.items()|tojson }}
{{ namespace()|tojson }}
{{ l|map('string')|tojson }}
{{ l|nope }}
{{ l|join(1, 2, 3) }}
{{ s|upper(1) }}
# Tests.
{{ i is number }} {{ i is integer }} {{ f is float }} {{ yes is boolean }} {{ yes is number }} {{ yes is integer }} {{ i is float }} {{ s is string }} {{ d is mapping }} {{ l is sequence }} {{ s is sequence }} {{ d is sequence }} {{ none is sequence }} {{ i is sequence }} {{ l is iterable }} {{ s is iterable }} {{ none is iterable }} {{ d is iterable }} {{ i is iterable }} {{ l is mapping }} {{ range is callable }} {{ s is callable }}
{{ none is none }} {{ i is not none }} {{ undefined_name is none }} {{ undefined_name is defined }} {{ i is defined }} {{ d.missing is undefined }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }} {{ undefined_name is string }} {{ undefined_name is iterable }} {{ undefined_name is sequence }}
{{ 3 is odd }} {{ 4 is even }} {{ 6 is divisibleby 3 }} {{ 6 is divisibleby(4) }} {{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 1 is lt 2 }} {{ 2 is ge 2 }} {{ 'a' is in 'abc' }} {{ 1 is in l }} {{ 'A' is upper }} {{ 'a' is lower }} {{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }} {{ 1 is sameas 1 }} {{ true is sameas true }} {{ 1 is sameas true }} {{ none is sameas none }} {{ i is equalto 7 }} {{ 'x'|safe is escaped }} {{ not i is string }} {{ i is not string and l is not mapping }}
{{ i is nope }}
{{ x is defined and x.y is defined }} {{ d.nested is defined and d.nested.y is string }} {{ 'a' if d.z is defined else 'b' }}
# Whitespace.
  {% if true %}
 a
  {% endif %}
b
a {%- if true -%} b {%- endif %} c
a
  {{- 'x' -}}
  b
  {%+ if true %}x{% endif %}
{% if true +%}
x{% endif %}
  {# comment #}
a {# comment -#}   b {#- comment #} c
a{# comment +#}
b
{% raw %}{{ x }} {% if %}{% endraw %} {%- raw -%}  y  {%- endraw -%}  z
{% raw %}
 x
{% endraw %}
y
{{ '}}' }} {{ '%}' }} {{ "{{" }} {{ {'a': 1}}}
{%- for x in l -%}
  {{ x }}
{%- endfor %}
	{% set x = 1 %}	
x
{{ 'a
b' }}
text without an end
# Other statements.
{% if e %}1{% elif none %}2{% elif i %}3{% else %}4{% endif %}{% if undefined_name %}x{% endif %}{% if l == [3, 1, 2] and 'a' in s or true %}y{% endif %}
{% block title %}in {{ i }} {% set x = 2 %}{% endblock %}{{ x }}
{% autoescape false %}<{{ '<' }}{% endautoescape %}
{% generation %}answer {{ i }}{% set x = 9 %}{% endgeneration %}{{ x }}
{% do l %}
{% nope %}
{% if %}
{% for x in %}{% endfor %}
{{ }}
{{ 1 + }}
{{ (1 }}
{% endif %}
{% if true %}
{{ 'a }}
{# a
{{ a b }}
{{ a ! b }}
{{ [1, 2 }}
{% set %}
{% set true = 1 %}
{{ raise_exception('no') }}
{{ raise_exception('no') if false else 'fine' }}
{{ joiner(',')() }}{% set j = joiner('; ') %}{{ j() }}a{{ j() }}b{{ j() }}c {% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}
{{ cycler() }}
{{ dict(*[1]) }}
{{ range(*[1, 4])|list }} {{ dict(**{'a': 1}) }} {{ '{}{}'.format(*['a', 'b']) }}
{{ namespace(_x=1) }}
{% set ns = namespace() %}{% set ns.__class__ = 1 %}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}
{{ chat[0]['content']|length > 5 and chat[1].name == 'Ada' }} {{ (chat|last).content[0].text }} {{ chat[-1]['content'] is string }} {{ chat[2].tool_calls[0].function.arguments|tojson }} {{ chat[2].tool_calls is iterable and chat[2].tool_calls is not string }}
{{ chat[1:] | map(attribute='role') | join(' ') }} {{ chat[0].content.split(' ')[0] | lower }} {{ (i | string) + s }} {{ 'a' if chat[0].name is not defined else chat[0].name }}
{{ chat | length - 1 }} {{ not chat[0].role == 'user' }} {{ chat[0].role in ['user', 'system'] and not loop }} {{ -chat | length }}
{{ ([1, 2] | length) * 2 }} {{ l | length * 2 }} {{ '%02d' | format(5) }} {{ l[0] | string | length }} {{ 1 if l else 2 }} {{ l | map('int') | sum / 2 }}
'''


def cases():
    """Groups of lines: what begins with a tag or text is a case; the whitespace cases are of several lines."""
    title, found = '', []
    lines = CASES.strip('\n').split('\n')
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith('# '):
            title = line[2:].rstrip('.')
        elif title == 'Whitespace':
            # All at once, and each two lines.
            end = next(i for i in range(at, len(lines)) if lines[i].startswith('# '))
            found.append((title, '\n'.join(lines[at:end]) + '\n'))
            found.append((title, '\r\n'.join(lines[at:end])))
            found += [(title, '\n'.join(lines[i:i + 3])) for i in range(at, end)]
            at = end
            continue
        elif line.endswith('\\'):
            found.append((title, line + '\n' + lines[at + 1]))
            at += 1
        else:
            found.append((title, line))
        at += 1
    return found


class Generation(Extension):
    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method('_call'), [], [], body).set_lineno(line)

    def _call(self, caller):
        return caller()


class TemplateDict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            TemplateNamespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        TemplateNamespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith('_'):
            raise jinja2.exceptions.SecurityError(name)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters['tojson'] = tojson
    env.globals.update(raise_exception=raise_exception, dict=TemplateDict(), namespace=TemplateNamespace)
    return env


def run(env, source, variables):
    try:
        return {'text': env.from_string(source).render(**variables)}
    except Exception as error:
        return {'error': f'{type(error).__name__}: {error}'}


if __name__ == '__main__':
    env = environment()
    found = [{'of': title, 'source': source, **run(env, source, VARIABLES)} for title, source in cases()]
    for case in found:
        # Its words are not compared.
        if 'error' in case and case['source'].startswith(('{', 'a')):
            print(f"refused: {case['source'][:60]!r}: {case['error'][:100]}")
        if 'error' in case:
            case['error'] = True
    text = json.dumps({'variables': VARIABLES, 'cases': found}, ensure_ascii=False, indent=1)
    (HERE / 'cases.json').write_text(text + '\n', encoding='utf-8')
