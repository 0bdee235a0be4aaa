// Reports errors and messages with rollbar.js until its standard input ends: node post.mjs ENDPOINT TOKEN. It prints
// the UUID of each report that the SDK considers sent.
import Rollbar from 'rollbar';

const [endpoint, accessToken] = process.argv.slice(2);
const rollbar = new Rollbar({ endpoint, accessToken, environment: 'rollbar-js', itemsPerMinute: 100000 });
let ended = false;
process.stdin.resume().on('end', () => { ended = true; });

const sent = (error, result) => {
  if (!error) console.log(result.uuid);
};
for (let n = 0; !ended; n++) {
  rollbar.error(new TypeError(`checkout ${n}: the price is undefined`), sent);
  rollbar.info(`checkout ${n} is closed`, sent);
  await new Promise(resolve => setTimeout(resolve, 200));
}
await new Promise(resolve => rollbar.wait(resolve));
