// Uses the pages by keyboard alone, without JavaScript: finds last week's errors of one kind, opens their item, reads its
// stack trace, resolves it, makes it active again, and goes back.
import assert from 'node:assert/strict';
import { call, context, end, failed, origin, watch } from './service.mjs';

const item = await failed();
const session = await context({ javaScriptEnabled: false, viewport: { width: 1000, height: 700 } });
const page = await session.newPage();
const noise = [];
watch(page, noise);
let strokes = 0;
const press = async key => { strokes++; await page.keyboard.press(key); };

// tab moves to the next element that matches, and checks that the focus is visible all the way.
async function tab(selector) {
  for (let n = 0; n < 150; n++) {
    await press('Tab');
    const [matches, isVisible] = await page.evaluate(wanted => {
      const here = document.activeElement;
      const box = here.getBoundingClientRect();
      const inView = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
      return [here.matches(wanted), here === document.body || inView && getComputedStyle(here).outlineStyle !== 'none'];
    }, selector);
    assert(isVisible, `the focus is visible on the way to ${selector}`);
    if (matches) return;
  }
  assert.fail(`${selector} is reached by Tab`);
}
const follow = () => Promise.all([page.waitForNavigation(), press('Enter')]);

await page.goto(`${origin}/`);
assert.equal(new URL(page.url()).pathname, '/reports/summary');
await tab('.skip');
await tab('nav a[href$="/reports"], nav a[href$="./reports"]');
await follow();
await tab('input[name=q]');
await page.keyboard.type('pricemissing');
await tab('input[name=since]');
await page.keyboard.type('7d');
await follow();
const titles = await page.locator('tbody td:last-child').allInnerTexts();
assert(titles.length > 0 && titles.every(title => title.includes('PriceMissing')), titles.join('\n'));
await page.goto(`${origin}/`);
await tab('nav a[href$="../items"]');
await follow();
await tab('input[name=query]');
await page.keyboard.type('PriceMissing');
await follow();
await tab(`tbody a[href$="items/${item}"]`);
await follow();
assert.match(await page.locator('.trace > li').first().innerText(), /shop\/price\.py:17 in price_of/);
assert.match(await page.locator('.trace .current').first().innerText(), /raise PriceMissing/);
await tab('button[value=resolved]');
await follow();
assert.equal(new URL(page.url()).pathname, `/items/${item}`);
assert.equal((await call('GET', `/items/${item}`)).status, 'resolved');
assert.match(await page.locator('.history > li').first().innerText(), /active → resolved/);
await tab('button[value=active]');
await follow();
assert.equal((await call('GET', `/items/${item}`)).status, 'active');
await tab('.trail a');
await follow();
assert.equal(new URL(page.url()).pathname, '/items');
assert.deepEqual(noise, []);
console.log(`by keyboard, without JavaScript, in ${strokes} strokes: found, read, resolved, made active again, back`);
await end();
