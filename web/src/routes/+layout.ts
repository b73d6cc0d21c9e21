// Everything is read from the API in the browser; there is nothing to render before.
export const ssr = false;
export const prerender = false;
