// What the tests use of the dashboard's own development dependencies.
import { createRequire } from 'node:module';

const web = createRequire(new URL('../../../web/package.json', import.meta.url));

export const { chromium } = web('playwright-core');
/** Where axe lies, to be put into pages. */
export const axe = web.resolve('axe-core/axe.min.js');
