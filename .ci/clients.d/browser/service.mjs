// Access to the service and a browser: node FILE http://host, with API_TOKEN.
import { chromium } from 'playwright-core';

export const origin = new URL(process.argv[2]).origin;
const token = process.env.API_TOKEN;

async function send(method, path, body, type) {
  const headers = { Accept: type, 'Content-Type': 'application/json', ...token && { Authorization: `Bearer ${token}` } };
  const response = await fetch(origin + path, { method, headers, body: body && JSON.stringify(body) });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${path}: ${text}`);
  return text;
}

// call calls the API, text reads a page.
export const call = async (method, path, body) => JSON.parse(await send(method, path, body, 'application/json'));
export const text = path => send('GET', path, undefined, 'text/html');

// context starts a signed-in browser session, and end closes the browser.
let browser;
export async function context(settings) {
  browser ??= await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] }); // Chromium has none for root
  return browser.newContext({ httpCredentials: token && { username: 'clients', password: token, origin }, ...settings });
}
export const end = () => browser.close();

// watch records a page's console messages, errors and requests to other hosts.
export function watch(page, noise) {
  page.on('console', message => noise.push(`console: ${message.text()}`));
  page.on('pageerror', error => noise.push(`error: ${error}`));
  page.on('request', request => {
    if (!request.url().startsWith('data:') && new URL(request.url()).origin !== origin) noise.push(`request: ${request.url()}`);
  });
}

// fail posts an occurrence with a stack trace and the source lines around each call.
export async function fail(agoInSeconds) {
  const frame = (filename, lineno, method, pre, code, post) => ({ filename, lineno, method, code, context: { pre, post } });
  await call('POST', '/items', {
    data: {
      environment: 'production', level: 'error', platform: 'linux', language: 'python', code_version: '4.2.0', fingerprint: 'price-of-nothing',
      timestamp: Math.floor(Date.now() / 1000) - agoInSeconds,
      request: { url: 'https://shop.example.com/cart/checkout', method: 'POST' }, server: { host: 'web-3' },
      body: { trace: {
        exception: { class: 'PriceMissing', message: 'no price for “espresso cups, set of 6”' },
        frames: [
          frame('shop/views.py', 88, 'checkout', ['def checkout(request):', '    cart = Cart.of(request.user)'], '    total = cart.total(request.currency)', ['    return render(request, "pay.html", total)']),
          frame('shop/cart.py', 41, 'total', ['    def total(self, currency):'], '        return sum(price_of(line, currency) for line in self.lines)', []),
          frame('shop/price.py', 17, 'price_of', ['    price = line.product.prices.get(currency)', '    if price is None:'], '        raise PriceMissing(f"no price for “{line.product.name}”")', ['    return price * line.quantity']),
        ],
      } },
    },
  });
}

// failed syncs the service, posts such an occurrence and returns the id of its item.
export async function failed() {
  await call('POST', '/items/sync');
  await fail(60);
  await call('POST', '/occurrences/sync');
  return (await call('GET', '/items?query=PriceMissing')).items[0].id;
}
