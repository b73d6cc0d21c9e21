package up

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/joho/godotenv"

	"skerry.dev/skerry/sdk"
)

// credentials are what credentials.env holds beside the URL.
type credentials struct{ email, password, key string }

// adminEmail is the first admin's when nobody chose one. The domain can belong
// to nobody.
const adminEmail = "admin@skerry.local"

const keyName = "local"

// setup is what a first start decides before it acts, so that one that is
// killed in between is continued with the same words.
type setup struct {
	Email    string `json:"email"`
	Password string `json:"password"`
}

// readCredentials tells what a former start wrote down; false when there is
// nothing yet, or not all of it.
func (u *instance) readCredentials() (credentials, bool, error) {
	file := CredentialsFile(u.Data)
	values, err := godotenv.Read(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return credentials{}, false, nil
	case err != nil:
		return credentials{}, false, fmt.Errorf("%s is damaged: %w", file, err)
	case values["SKERRY_API_KEY"] == "" || values["SKERRY_ADMIN_PASSWORD"] == "":
		return credentials{}, false, nil
	}
	known := credentials{email: values["SKERRY_ADMIN_EMAIL"], password: values["SKERRY_ADMIN_PASSWORD"], key: values["SKERRY_API_KEY"]}
	if values["SKERRY_URL"] != baseURL(u.Listen) { // another port this time
		err = u.writeCredentials(known)
	}
	return known, true, errors.Join(err, removeIfThere(u.path("setup.json")))
}

// firstAdmin makes the first admin with a login that is on disk before. A start
// that is killed at any point from here on is followed by one that goes on with
// the same login; where only the file was lost, the admin gets a new one.
func (u *instance) firstAdmin(ctx context.Context) (setup, error) {
	u.show.start("admin")
	first, err := u.decide()
	if err != nil {
		return setup{}, err
	}
	if err := u.Parts.EnsureAdmin(ctx, u.dbURL, u.key, first.Email, first.Password); err != nil {
		return setup{}, fmt.Errorf("make the first admin: %w", err)
	}
	u.show.done("")
	return first, nil
}

// firstKey makes the team's API key and writes everything down.
func (u *instance) firstKey(ctx context.Context, first setup) (credentials, error) {
	u.show.start("API key")
	key, err := u.makeKey(ctx, first)
	if err != nil {
		return credentials{}, fmt.Errorf("make the first API key: %w", err)
	}
	known := credentials{email: first.Email, password: first.Password, key: key}
	if err := u.writeCredentials(known); err != nil {
		return credentials{}, err
	}
	u.made = &known
	u.show.done("")
	return known, removeIfThere(u.path("setup.json"))
}

func (u *instance) decide() (setup, error) {
	file := u.path("setup.json")
	var s setup
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &s)
		return s, err
	}
	if !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	s = setup{Email: u.AdminEmail, Password: rand.Text()}
	if s.Email == "" {
		s.Email = adminEmail
	}
	raw, err = json.Marshal(s)
	if err != nil {
		return s, err
	}
	return s, writeFile(file, raw)
}

// makeKey makes the key over the API, as anybody would. Keys that a start made
// and did not come to write down are revoked: nobody knows them.
func (u *instance) makeKey(ctx context.Context, first setup) (string, error) {
	anonymous, err := sdk.New(baseURL(u.Listen))
	if err != nil {
		return "", err
	}
	login, err := anonymous.Login(ctx, first.Email, first.Password)
	if err != nil {
		return "", err
	}
	client, err := sdk.New(baseURL(u.Listen), sdk.WithToken(login.Token))
	if err != nil {
		return "", err
	}
	defer func() { _ = client.Logout(ctx) }()
	var lost []string
	for k, err := range client.APIKeys(ctx) {
		if err != nil {
			return "", err
		}
		if k.Name == keyName {
			lost = append(lost, k.ID)
		}
	}
	for _, id := range lost {
		if err := client.DeleteAPIKey(ctx, id); err != nil {
			return "", err
		}
	}
	made, err := client.CreateAPIKey(ctx, keyName)
	if err != nil {
		return "", err
	}
	return made.Key, nil
}

func (u *instance) writeCredentials(c credentials) error {
	content := fmt.Sprintf("SKERRY_URL=%s\nSKERRY_API_KEY=%s\nSKERRY_ADMIN_EMAIL=%s\nSKERRY_ADMIN_PASSWORD=%s\n",
		baseURL(u.Listen), c.key, c.email, c.password)
	return writeFile(CredentialsFile(u.Data), []byte(content))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
