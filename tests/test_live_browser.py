"""The live page in a real browser; skipped where there is none.

It takes `pip install playwright` and a Chromium, which CHROMIUM or the path
names (`apt-get install chromium`).
"""

import json
import os
import shutil

import helpers
import pytest

from rlzero.reporting import live_page, live_run
from rlzero.runtime import files

sync_api = pytest.importorskip(
  'playwright.sync_api', reason='playwright is not installed'
)
_CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium')
pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(not _CHROMIUM, reason='no chromium in the path'),
]

HOSTILE = '<img src=x onerror=alert(1)><script>alert(2)</script>'
VIEWS = ('overview', 'completions', 'gallery', 'time', 'settings')


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    launched = playwright.chromium.launch(
      executable_path=_CHROMIUM, args=['--no-sandbox']
    )
    yield launched
    launched.close()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = helpers.write_watched_run(
    tmp_path_factory.mktemp('run') / 'watched', hostile=HOSTILE
  )
  count = 8
  texts = ['<think>', ' 3', ' + 4', HOSTILE, ' = 7', ' wait', ' 17', ' ok']
  row = {
    'place': 0,
    'texts': texts,
    'logprob': [-0.001, -0.2, -0.7, -3.0, -5.0, -1.5, -0.05, None],
    'entropy': [0.1] * count,
    'mismatch': [1e-7] * count,
    'advantage': [1.0, -2.0] * (count // 2),
  }
  files.write_jsonl(made / 'tokens' / 'step_000020.jsonl', [row])
  return made


@pytest.fixture(scope='module')
def base(folder, tmp_path_factory):
  other = helpers.write_watched_run(
    tmp_path_factory.mktemp('run') / 'other', 20
  )
  runs = [live_run.LiveRun(str(f)) for f in (folder, other)]
  with helpers.serve_app(live_page.app(runs)) as port:
    yield f'http://127.0.0.1:{port}/'


@pytest.fixture
def page(browser, base):
  """The page, once it has read the runs; whatever goes wrong in it fails."""
  context = browser.new_context(viewport={'width': 1200, 'height': 900})
  opened = context.new_page()
  wrong = []
  opened.on('console', lambda m: m.type == 'error' and wrong.append(m.text))
  opened.on('pageerror', lambda error: wrong.append(str(error)))
  opened.on('dialog', lambda dialog: wrong.append(dialog.message))
  opened.on('request', lambda r: r.url.startswith(base) or wrong.append(r.url))
  opened.goto(base)
  opened.wait_for_selector('#charts svg')
  yield opened
  assert wrong == []
  context.close()


def says(page, selector, text):
  sync_api.expect(page.locator(selector)).to_contain_text(text)


def show(page, view):
  page.click(f'nav a[href="#{view}"]')
  page.wait_for_selector(f'#{view}:not([hidden])')
  if view == 'completions':
    page.wait_for_selector('#completions .card')
  if view == 'gallery':
    says(page, '#gallery', 'kept steps read')


def test_the_figures_are_drawn_and_follow_the_run(page, folder):
  titles = page.locator('#charts figure:visible h3').all_inner_texts()
  assert 'Accuracy over training' in titles and 'Mean reward' in titles
  assert 'KL from the reference' not in titles  # the run has none
  assert 'step 30 of 40' in page.inner_text('#status')
  with open(folder / 'metrics.jsonl', 'a') as file:
    file.write(json.dumps({'step': 30, 'policy/kl': 0.5}) + '\n')
  says(page, '#status', 'step 31 of 40')
  assert 'KL from the reference' in page.inner_text('#charts')


def test_runs_lie_over_each_other_and_can_be_left_out(page):
  lines = '#charts figure:visible path.line'
  both = page.locator(lines).count()
  page.uncheck('#legend label:nth-child(2) input')
  assert 0 < page.locator(lines).count() < both


def test_the_arrow_keys_read_a_chart(page):
  chart = page.locator('#charts .plot:visible').nth(1)
  chart.focus()
  page.keyboard.press('Home')
  readout = page.locator('#charts figure:visible .readout').nth(1)
  assert readout.inner_text().startswith('step 0 · ')
  page.keyboard.press('ArrowRight')
  assert readout.inner_text().startswith('step 1 · ')


def test_completions_are_text_and_can_be_filtered(page):
  show(page, 'completions')
  assert page.locator('#completions .card').count() == 4
  assert page.locator('#completions details[open]').count() == 0
  page.check('text=thoughts open')
  assert page.locator('#completions details[open]').count() == 4
  page.select_option('#completions .wide select', '1')
  says(page, '#completions .ask', '<img')
  assert HOSTILE in page.inner_text('#completions .card pre')
  assert page.locator('#completions .card img').count() == 0
  page.select_option('.filters select >> nth=0', 'yes')
  assert page.locator('#completions .card').count() == 2
  page.fill('[aria-label="Most length"]', '20')
  assert page.locator('#completions .card').count() == 1


def test_a_search_goes_through_all_steps(page):
  show(page, 'completions')
  page.fill('[aria-label="Least reward"]', '2')
  page.click('text=Find in all steps')
  says(page, '.results', '12 found')
  page.click('.match >> nth=0')
  says(page, '.step-name', 'step 0 (1 of 3)')


def test_the_gallery_marks_what_was_put_right(page):
  show(page, 'gallery')
  row = page.inner_text('#gallery tbody tr:nth-child(2)').split()
  assert row[:2] == ['another', 'way'] and row[-2:] == ['12', '0']
  card = page.locator('#gallery .card').first
  assert card.locator('mark.wrong').inner_text() == '7 + 5 = 12'
  assert card.locator('mark.word').inner_text() == 'wait'
  assert card.locator('mark.right').inner_text() == '12 + 5 = 17'
  card.locator('button').click()
  page.wait_for_selector('#completions .card:focus')


def test_tokens_are_coloured_with_a_legend(page):
  show(page, 'completions')
  page.click('.card >> nth=0 >> button:text-is("Tokens")')
  assert page.locator('.tokens .token').count() == 8
  assert page.locator('.tokens .token').nth(3).inner_text() == HOSTILE
  assert page.locator('.tokens .q0').count() == 1
  assert page.locator('.tokens .none').count() == 1
  assert page.locator('.token-legend li').count() == 7
  page.select_option('.token-view select', 'advantage')
  assert page.locator('.tokens .d0').count() == 4
  page.focus('.tokens')
  page.keyboard.press('ArrowRight')
  page.keyboard.press('ArrowRight')
  said = page.inner_text('.token-view .readout')
  assert 'token 2' in said and 'log-prob -0.200' in said


@pytest.mark.parametrize('view', VIEWS)
def test_a_phone_does_not_scroll_sideways(page, view):
  page.set_viewport_size({'width': 375, 'height': 700})
  show(page, view)
  page.wait_for_timeout(100)
  wide = page.evaluate(
    """() => [...document.querySelectorAll('body *')].filter((node) => {
      if (node.closest('.scroll, [hidden], .matches, pre')) return false;
      const box = node.getBoundingClientRect();
      return box.width && (box.right > 376 || box.left < -1)
        && !node.classList.contains('skip');
    }).map((node) => `${node.tagName}.${node.className}`)"""
  )
  assert wide == []
  assert page.evaluate('document.documentElement.scrollWidth') <= 375


@pytest.mark.parametrize('view', VIEWS)
def test_the_keyboard_reaches_all_and_shows_where_it_is(page, view):
  show(page, view)
  wanted = page.evaluate(
    """() => [...document.querySelectorAll(
      'a, button, input, select, summary, [tabindex="0"]')].filter((node) =>
      node.checkVisibility() && !node.disabled).map((node, i) => {
        node.dataset.number = i;
        return i;
      })"""
  )
  page.evaluate('document.activeElement.blur(); window.scrollTo(0, 0)')
  reached = set()
  for _ in range(len(wanted) + 5):
    page.keyboard.press('Tab')
    number, outline = page.evaluate(
      """() => {
        const node = document.activeElement;
        const style = getComputedStyle(node);
        return [node.dataset.number, style.outlineStyle !== 'none'
          && parseFloat(style.outlineWidth) > 0];
      }"""
    )
    if number is not None:
      assert outline, number
      reached.add(int(number))
  assert reached == set(wanted)
