// Looks at each kind of page, on a wide and a narrow screen, light and dark.
import assert from 'node:assert/strict';
import axe from 'axe-core';
import { context, end, failed, origin, text, watch } from './service.mjs';

const item = await failed();
const [occurrence] = /(?<=occurrences\/)\d+/.exec(await text('/occurrences')); // as text, since a JavaScript number cannot hold the id
const [report] = /(?<=reports\/)\d+/.exec(await text('/reports'));

// The kinds of pages: the name, the path, what to do on the page, and its status if that is not 200.
const pages = [
  ['start', '/'],
  ['items', '/items?limit=20'],
  ['item', `/items/${item}`],
  ['occurrences of an item', `/items/${item}/occurrences`],
  ['reports', '/reports?limit=20'],
  ['report', `/reports/${report}`],
  ['summary', '/reports/summary'],
  ['occurrences', '/occurrences'],
  ['occurrence', `/occurrences/${occurrence}`],
  ['check', '/check'],
  ['question', '/reports', page => page.locator('form:has(input[name=_method][value=DELETE]) button').click()],
  ['wrong filter', '/items?level=fatal', null, 400],
  ['no such item', '/items/1', null, 404],
  ['no such page', '/nowhere', null, 404],
];
const faults = [];
for (const [colorScheme, width] of [['light', 1280], ['dark', 375]]) {
  const session = await context({ colorScheme, viewport: { width, height: 800 } });
  for (const [name, path, act, status = 200] of pages) {
    const here = `${name}, ${colorScheme}, ${width} px`;
    const page = await session.newPage();
    const noise = [];
    watch(page, noise);
    const response = await page.goto(origin + path);
    if (response.status() !== status) faults.push(`${here}: status ${response.status()}`);
    if (act) {
      await page.evaluate(() => document.querySelectorAll('details').forEach(d => { d.open = true; }));
      await Promise.all([page.waitForNavigation(), act(page)]);
    }
    for (const open of [false, true]) { // first folded, then unfolded
      if (open) await page.evaluate(() => document.querySelectorAll('details').forEach(d => { d.open = true; }));
      const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
      if (inner > outer) faults.push(`${here}${open ? ', open' : ''}: ${inner} px wide`);
    }
    const back = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3).map(Number));
    if ((Math.max(...back) < 64) !== (colorScheme === 'dark')) faults.push(`${here}: the background is ${back}`);
    await page.evaluate(axe.source);
    const { violations } = await page.evaluate(() => axe.run());
    for (const { id, impact, nodes } of violations) {
      const found = `${here}: ${impact}: ${id}: ${nodes.map(n => n.target).slice(0, 3).join(', ')}`;
      if (impact === 'serious' || impact === 'critical') faults.push(found);
      else console.log(found);
    }
    const own = status === 200 ? '' : `status of ${status}`; // Chromium's own message about the page
    faults.push(...noise.filter(line => !own || !line.includes(own)).map(line => `${here}: ${line}`));
    await page.close();
  }
  await session.close();
}
await end();
assert.deepEqual(faults, []);
console.log(`${pages.length} kinds of pages, wide and light, narrow and dark: no messages, no requests elsewhere, nothing serious from axe-core`);
